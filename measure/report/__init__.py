"""Evaluation records as a self-contained HTML page and as a Hugging Face model card."""

from quantmill.measure.report.card import CARD, card
from quantmill.measure.report.collect import HeatMap, Report, collect
from quantmill.measure.report.page import PAGE, page

__all__ = ["CARD", "PAGE", "HeatMap", "Report", "card", "collect", "page"]
