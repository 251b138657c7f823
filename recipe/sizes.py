"""Sizes as people write them: `1.5GiB`, `4.6GB`, `4600M`, `105454368`."""

from __future__ import annotations

import re
from decimal import Decimal

from quantmill.recipe.errors import RecipeError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?", re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str, option: str) -> int:
    """Whole bytes, a fraction of one left out. `M` and `MB` are 10⁶, `MiB` is 2²⁰, and so on; any case.

    Raises RecipeError, naming `option`, for anything else and for less than a byte.
    """
    match = _SIZE.fullmatch(text.strip()) if text.isascii() else None
    if match is None:
        raise RecipeError(
            f"{option} {text!r}: expected a size such as 500M, 4.6GB (powers of 1000) or 4.6GiB (powers of 1024)"
        )
    number, unit, binary = match.groups()
    scale = (1024 if binary else 1000) ** _POWERS[unit.upper()] if unit else 1
    n_bytes = int(Decimal(number) * scale)
    if not n_bytes:
        raise RecipeError(f"{option} {text!r}: less than a byte")
    return n_bytes
