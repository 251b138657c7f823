"""Evaluation records as a self-contained HTML page and as a Hugging Face model card."""

from quantmill.measure.report.card import CARD, card
from quantmill.measure.report.collect import HeatMap, Report, collect
from quantmill.measure.report.page import PAGE, page
from quantmill.measure.report.setting import NO_SETTING, Prediction, Rival, Setting

__all__ = [
    "CARD",
    "NO_SETTING",
    "PAGE",
    "HeatMap",
    "Prediction",
    "Report",
    "Rival",
    "Setting",
    "card",
    "collect",
    "page",
]
