"""Where a code can go from where it is: to the next level of its type, or to another entry of its type's codebook."""

from __future__ import annotations

import functools
from typing import Protocol

import torch

from quantmill.qkernels.lattices import GRIDS, LATTICES, GridLattice, ScalarLattice

_VECTORS = 4096  # compared with a codebook at a time


class Steps(Protocol):
    """A type's steps. every: of so many times that wishes have grown, one is looked at."""

    every: int

    def sizes(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """blocks u8 [n_rows, row_bytes] → the weights, and how far it is to the next, both [n_rows, n_cols] f32."""
        ...

    def taken(self, blocks: torch.Tensor, wishes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Let codes go where a wish beyond half a step leads them.

        blocks [n, bytes], one a row; wishes [n, block] f32, in steps, upwards in the weight. → the blocks then, and
        how far each weight went.
        """
        ...


@functools.cache
def steps_of(type: str) -> Steps | None:
    """None for types whose codes are not taken one by one."""
    if type in GRIDS:
        return GridSteps(GRIDS[type])
    lattice = LATTICES.get(type)
    return ScalarSteps(lattice) if isinstance(lattice, ScalarLattice) and lattice.planes else None


class ScalarSteps:
    """Of types whose codes are numbers of single weights."""

    every = 1

    def __init__(self, lattice: ScalarLattice) -> None:
        self._lattice = lattice
        levels = torch.tensor(lattice.levels)
        gaps = (levels[1:] - levels[:-1]).repeat_interleave(2)
        self._gaps = torch.cat([gaps[:1], gaps, gaps[-1:]]).view(-1, 2).mean(1)  # around each level

    def sizes(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        choice = self._lattice.unpack(blocks)
        scale, _ = self._lattice.steps(choice)
        gaps = self._gaps.to(blocks.device)[choice.codes.int()]
        return self._lattice.decode(choice), gaps * scale.abs().repeat_interleave(self._lattice.group, 1)

    def taken(self, blocks: torch.Tensor, wishes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        choice = self._lattice.unpack(blocks)
        scale, _ = self._lattice.steps(choice)
        up = scale.sign().int().repeat_interleave(self._lattice.group, 1)  # which way codes grow
        way = torch.where(wishes.abs() > 0.5, wishes.sign().int() * up, 0)
        old = choice.codes.int()
        new = (old + way).clamp_(0, len(self._lattice.levels) - 1)
        choice.codes = new.to(torch.uint8)
        return self._lattice.pack(choice), ((new - old) * up).float()


class GridSteps:
    """Of types that choose vectors of weights together: the entry nearest to where the vector wants to be.

    Signs and shifts stay. A step is the usual distance of a codebook's values. Where no entry lies nearer than the own
    one, wishes grow on.
    """

    every = 16  # many wishes lead nowhere, and each look costs a search of the codebook

    def __init__(self, lattice: GridLattice) -> None:
        self._lattice = lattice
        values = lattice.grid(torch.device("cpu")).unique()
        self._gap = float((values[-1] - values[0]) / (len(values) - 1))

    def sizes(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        choice = self._lattice.unpack(blocks)
        scale = self._lattice.steps(choice).abs().mul_(self._gap)
        return self._lattice.decode(choice), scale.repeat_interleave(self._lattice.group, 1)

    def taken(self, blocks: torch.Tensor, wishes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        choice, dim = self._lattice.unpack(blocks), self._lattice.dim
        up = (
            self._lattice.steps(choice).sign().repeat_interleave(self._lattice.group, 1)
        )  # which way entries grow
        if choice.negative is not None:
            up = torch.where(choice.negative, -up, up)
        went = torch.zeros_like(wishes)
        row, vector = torch.nonzero(wishes.unflatten(1, (-1, dim)).abs().amax(2) > 0.5, as_tuple=True)
        up, wanted = (part.unflatten(1, (-1, dim))[row, vector] for part in (up, wishes))
        grid = self._lattice.grid(blocks.device)
        own = grid[choice.entries[row, vector].int()]
        wanted = own + wanted * up * self._gap
        sizes = grid.square().sum(1)
        nearest = torch.cat([(sizes - 2 * (part @ grid.T)).argmin(1) for part in wanted.split(_VECTORS)])
        nearer = (wanted - grid[nearest]).square().sum(1) < (wanted - own).square().sum(1)
        choice.entries[row, vector] = torch.where(
            nearer, nearest.to(choice.entries.dtype), choice.entries[row, vector]
        )
        way = torch.where(nearer[:, None], (grid[nearest] - own) * up / self._gap, 0.0)
        went.unflatten(1, (-1, dim))[row, vector] = way
        return self._lattice.pack(choice), went
