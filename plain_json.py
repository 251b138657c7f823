"""JSON as every reader takes it and every command prints it: no NaN, no characters beyond ASCII."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """One value, indented. Numbers that are not finite, which JSON has no word for, become null."""
    return json.dumps(finite(value), indent=1, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
