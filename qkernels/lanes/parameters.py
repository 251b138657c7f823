"""The parameters of lane programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def parameters_of(program: Callable[..., None]) -> tuple[str, ...]:
    """Their names, in order. Programs take positional ones only; inspect.signature, which can do more, takes a tenth of
    a millisecond, and there are hundreds of programs."""
    function: Any = program
    return tuple(function.__code__.co_varnames[: function.__code__.co_argcount])
