"""Evaluation records as a self-contained HTML page and as a Hugging Face model card."""

from quantmill.measure.report.card import card
from quantmill.measure.report.collect import HeatMap, Report, collect
from quantmill.measure.report.page import page

__all__ = ["HeatMap", "Report", "card", "collect", "page"]
