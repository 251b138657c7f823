"""A task: a question with choices, of whatever data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["hellaswag", "winogrande", "multiple-choice"]
KINDS: tuple[Kind, ...] = ("hellaswag", "winogrande", "multiple-choice")


@dataclass(frozen=True)
class Task:
    """One question. WinoGrande: stem and tail are the sentence around `_`; others have no tail.
    right: indices of the choices that count as correct."""

    stem: str
    choices: tuple[str, ...]
    right: frozenset[int]
    tail: str = ""
