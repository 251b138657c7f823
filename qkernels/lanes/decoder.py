"""What an engine needs to know to decode one type: its program, the lanes of a block, tables, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from quantmill.qkernels.lanes.parameters import parameters_of

# The parameters that every decoder has, in this order.
_GIVEN = ("j", "BLOCKS", "Y")


@dataclass(frozen=True, eq=False)
class Decoder:
    """The lane program that turns blocks of one type from bytes into numbers.

    `program(j, BLOCKS, Y, …)` for j = 0 … lanes-1: BLOCKS u8 [bytes] is a block of each lane, Y f32 [block / lanes]
    the j-th part of its numbers, from 0 on. What else it takes is bound by name: `constants`, and `tables`, makers of
    constant arrays under the parameter's name in small letters. Raises TypeError where these do not fit.
    """

    program: Callable[..., None]
    lanes: int = 1
    tables: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    constants: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = parameters_of(self.program)
        bound = {name.upper() for name in self.tables} | set(self.constants)
        if parameters[:3] != _GIVEN or set(parameters[3:]) != bound:
            raise TypeError(f"{self.program.__name__}{parameters} cannot be called with {sorted(bound)}")

    @property
    def module(self) -> str:
        """Where engines load the program from, "decode.grid"."""
        return self.program.__module__.removeprefix("quantmill.qkernels.")

    @property
    def function(self) -> str:
        return self.program.__name__

    @property
    def operands(self) -> tuple[str | int, ...]:
        """What follows BLOCKS and Y: the name of a table, or a constant."""
        names = parameters_of(self.program)[3:]
        return tuple(self.constants[name] if name in self.constants else name.lower() for name in names)
