"""The error of a calibration that cannot be done."""

from __future__ import annotations

from quantmill.errors import QuantmillError


class CalibrationError(QuantmillError):
    """A model, a base or a text that calibration cannot use; the message names it and the way out."""
