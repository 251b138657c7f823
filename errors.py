"""The root of every error that is meant for users."""

from __future__ import annotations


class QuantmillError(ValueError):
    """Bad input or an unfulfillable wish: one plain sentence with the tensor, the value, the limit and the way out.

    Each package derives one of its own. Any other ValueError is a bug and keeps its traceback.
    """
