"""The one exception of this package that is meant for users."""

from __future__ import annotations

from quantmill.errors import QuantmillError


class MeasureError(QuantmillError):
    """Bad input to a measurement: one plain sentence with the value, the limit and the way out."""
