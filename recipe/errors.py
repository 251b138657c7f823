"""The one exception of this package."""

from __future__ import annotations

from quantmill.errors import QuantmillError


class RecipeError(QuantmillError):
    """A recipe that cannot be applied: unknown type, bad pattern, impossible shape, a layer that does not exist."""
