"""Evaluation records as a self-contained HTML page and as a Hugging Face model card."""

from measure.report.card import card
from measure.report.collect import HeatMap, Report, collect
from measure.report.page import page

__all__ = ["HeatMap", "Report", "card", "collect", "page"]
