"""Numbers in metadata that no model has. A damaged or hostile file is told by its key before anything is made of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from quantmill.gguf_io.errors import GGUFError, shown

# Keys of whole numbers, or of lists of them with one for each layer. Real ones are far below the limit: a table made of
# what a file says could fill the memory before its tensors are found to have other shapes.
_WHOLE = re.compile(r"(?<![a-z])(count|length|size|rank|nextn_predict_layers)(_kv|_mla|_swa)?$")
MOST, LONGEST = 1 << 24, 1 << 31


def most(key: str) -> int:
    """The largest number of things under a key that a model may have."""
    return LONGEST if key.endswith("context_length") else MOST


def whole_number(key: str, value: Any) -> int:
    """The value. Raises GGUFError for what is no number of things."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most(key):
        raise GGUFError(
            f"metadata key {shown(key)} is {shown(str(value))}, no whole number from 0 to {most(key)}; "
            "the file is damaged"
        )
    return value


def sensible(key: str, value: Any) -> Any:
    """The value. Raises GGUFError for a number, or one of a list, that makes no sense under such a key."""
    if isinstance(value, float) and not math.isfinite(value):
        raise GGUFError(f"metadata key {shown(key)} is {value}; the file is damaged")
    if _WHOLE.search(key):
        for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            whole_number(key, one)
    return value
