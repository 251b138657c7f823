"""What an engine needs to know to run the programs of one type: arrays, tables and phases, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Phase:
    """One call of a program function: `function(j, *arguments)` for j = 0 … lanes-1.

    `lanes` says into how many independent lanes a block falls here (a GPU runs them side by side). Arguments name
    arrays (`Encoder.scratch`, `Encoder.tables` and the given "x", "importance", "row_sigma", "out") or are constants.
    """

    function: str
    arguments: tuple[str | int, ...]
    lanes: int = 1


@dataclass(frozen=True, eq=False)
class Encoder:
    """The lane programs that turn blocks of one type from numbers into bytes.

    Given arrays, all `[element][lane]` with one lane a block: "x" f32 [block], "importance" f32 [block], "row_sigma"
    f32 [1] (mean square of the lane's whole row, only when `uses_row_sigma`), "out" u8 [bytes].
    `scratch`: name → (elements a block, "f32" | "i32" | "u8"). `tables`: name → maker of a constant array.
    `private`: scratch that each lane `j` of a phase has for itself, because it is not indexed by `j`; an engine that
    runs the lanes one after another gives them all the same.
    """

    family: str
    phases: tuple[Phase, ...]
    scratch: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    private: frozenset[str] = frozenset()
    tables: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    uses_importance: bool = False
    uses_row_sigma: bool = False

    @property
    def module(self) -> str:
        """Where the functions of its phases are found."""
        return f"programs.{self.family}"


def steps(first: float, step: float, count: int, offset: float) -> Callable[[], np.ndarray]:
    """A table of `first + step·k + offset`, each operation rounded to float32 as C does with `f` constants."""

    def make() -> np.ndarray:
        k = np.arange(count, dtype=np.float32)
        return (np.float32(first) + np.float32(step) * k) + np.float32(offset)

    return make


def trial_ladder(first: float, step: float, count: int, levels: int) -> Callable[[], np.ndarray]:
    """The numerators of a scale-and-minimum search's `count` trials, then `levels`, then 1."""
    make = steps(first, step, count, levels)
    return lambda: np.append(make(), np.array([levels, 1], np.float32))


def scale_ladder(levels: int) -> Callable[[], np.ndarray]:
    """levels + 0.1·k for k = -4 … 4 without 0, then `levels`, then 1: the trials of the search for scales of scales."""

    def make() -> np.ndarray:
        k = np.array([-4, -3, -2, -1, 1, 2, 3, 4], np.float32)
        return np.append(np.float32(0.1) * k + np.float32(levels), np.array([levels, 1], np.float32))

    return make


def constants(*values: float) -> Callable[[], np.ndarray]:
    return lambda: np.array(values, np.float32)
