"""What an engine needs to know to run the programs of one type: arrays, tables and phases, as data."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from quantmill.qkernels.lanes.parameters import parameters_of

# Arrays that an engine gives; "importance" and "row_sigma" only to encoders that use them.
_GIVEN = frozenset({"x", "out"})


@dataclass(frozen=True, eq=False)
class Phase:
    """One call of a program function: `program(j, …)` for j = 0 … lanes-1.

    `lanes` says into how many independent lanes a block falls here (a GPU runs them side by side). Parameters are bound
    by name: to what `bound` says, a constant or the name of an array, else to the array of their name in small letters.
    Raises TypeError for a name in `bound` that is no parameter.
    """

    program: Callable[..., None]
    bound: Mapping[str, str | int] = field(default_factory=dict)
    lanes: int = 1

    def __post_init__(self) -> None:
        strangers = sorted(set(self.bound) - set(self._parameters[1:]))
        if strangers or self._parameters[0] != "j":
            raise TypeError(f"{self.function}{self._parameters} has no {', '.join(strangers) or 'j'}")

    @property
    def _parameters(self) -> tuple[str, ...]:
        return parameters_of(self.program)

    @property
    def function(self) -> str:
        return self.program.__name__

    @functools.cached_property
    def arguments(self) -> tuple[str | int, ...]:
        """What follows j, in order: names of arrays (`Encoder.scratch`, `Encoder.tables`, given ones) or constants."""
        return tuple(self.bound.get(name, name.lower()) for name in self._parameters[1:])


@dataclass(frozen=True, eq=False)
class Encoder:
    """The lane programs that turn blocks of one type from numbers into bytes.

    Given arrays, all `[element][lane]` with one lane a block: "x" f32 [block], "importance" f32 [block], "row_sigma"
    f32 [1] (mean square of the lane's whole row, only when `uses_row_sigma`), "out" u8 [bytes].
    `scratch`: name → (elements a block, "f32" | "i32" | "u8"). `tables`: name → maker of a constant array.
    `private`: scratch that each lane `j` of a phase has for itself, because it is not indexed by `j`; an engine that
    runs the lanes one after another gives them all the same.
    `start`: the encoder whose phases come first, with functions of its own family; made by `continued`.
    """

    family: str
    phases: tuple[Phase, ...]
    scratch: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    private: frozenset[str] = frozenset()
    tables: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    uses_importance: bool = False
    uses_row_sigma: bool = False
    start: Encoder | None = None

    def __post_init__(self) -> None:
        """Raises TypeError for a phase that names an array which is not there."""
        used = {"importance": self.uses_importance, "row_sigma": self.uses_row_sigma}
        there = _GIVEN | {name for name, is_used in used.items() if is_used} | {*self.scratch, *self.tables}
        for phase in self.phases:
            missing = sorted({a for a in phase.arguments if isinstance(a, str)} - there)
            if missing:
                raise TypeError(
                    f"{phase.function} names {', '.join(missing)}, which no array of the encoder is"
                )

    def module_of(self, phase: Phase) -> str:
        """Where the function of one of its phases is found."""
        if self.start is None:
            return self.module
        if phase in self.start.phases:
            return self.start.module_of(phase)
        return phase.program.__module__.removeprefix("quantmill.qkernels.")

    @property
    def module(self) -> str:
        """The module of its family, which imports from that of `start`."""
        return f"programs.{self.family}"


def kernel_name(phase: Phase) -> str:
    """What a GPU's kernel is called: the program, its constants and lanes, and a word that keeps both names apart."""
    constants = (re.sub(r"\W", "_", str(a)) for a in phase.arguments if not isinstance(a, str))
    lanes = [f"x{phase.lanes}"] if phase.lanes > 1 else []
    return "_".join([phase.function, *constants, *lanes, "kernel"])


def pointers(phase: Phase) -> list[str]:
    """The arrays and tables of a phase in the order of its kernel's parameters."""
    return list(dict.fromkeys(a for a in phase.arguments if isinstance(a, str)))


def most_lanes(encoder: Encoder) -> int:
    """How many lanes of a block run at once; private scratch is there so many times."""
    return max(phase.lanes for phase in encoder.phases)


def kinds_of(encoder: Encoder) -> dict[str, str]:
    """What the elements of arrays and tables are: name → "f32", "i32" or "u8"."""
    kinds = {"x": "f32", "importance": "f32", "row_sigma": "f32", "out": "u8"}
    kinds.update({name: kind for name, (_, kind) in encoder.scratch.items()})
    numbers = {"float32": "f32", "int32": "i32"}
    kinds.update({name: numbers[make().dtype.name] for name, make in encoder.tables.items()})
    return kinds


def continued(
    start: Encoder,
    family: str,
    phases: tuple[Phase, ...],
    scratch: Mapping[str, tuple[int, str]],
    tables: Mapping[str, Callable[[], np.ndarray]],
    weighted: bool,
    private: frozenset[str] = frozenset(),
) -> Encoder:
    """An encoder that goes on where `start` ends: "out" then holds the blocks that `start` makes.

    Scratch of the same name and size is shared.
    """
    shared = {*start.scratch} & {*scratch}
    assert not (start.private | private) & shared
    assert not {*start.tables} & {*tables}
    assert all(start.scratch[name] == scratch[name] for name in shared)
    return Encoder(
        family,
        (*start.phases, *phases),
        {**start.scratch, **scratch},
        start.private | private,
        {**start.tables, **tables},
        weighted,
        start.uses_row_sigma,
        start,
    )


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
