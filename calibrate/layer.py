"""One layer of a walk: sums, targets and codes of all its matrices, place by place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch

from quantmill.calibrate.balance import can_balance, column_factors
from quantmill.calibrate.errors import naming
from quantmill.calibrate.gram import Metric, metric_of, shrunk
from quantmill.calibrate.moments import FITTED, HELD, Moments, MomentsOf, is_held
from quantmill.calibrate.solver import Effort, plain, solvable, solve
from quantmill.calibrate.targets import NO_SHARES, Shares, target_of
from quantmill.calibrate.tensor_scales import divided, tensor_scale
from quantmill.models.model import LoadedModel
from quantmill.models.places import Place
from quantmill.models.workers import Workers
from quantmill.qkernels import dequantize


class Walked(Protocol):
    """What is asked of a walk, here or elsewhere."""

    @property
    def loaded(self) -> LoadedModel: ...
    @property
    def batches(self) -> Sequence[torch.Tensor]: ...


class SeenLayer(Protocol):
    """What is asked of a layer of one; models.walked_layer.Layer is it here."""

    @property
    def walk(self) -> Walked: ...
    @property
    def places(self) -> tuple[Place, ...]: ...
    def with_norms(self) -> tuple[Place, ...]: ...
    def weight(self, name: str) -> torch.Tensor: ...
    def visit(self, place: Place, make: MomentsOf) -> Moments: ...
    def change_blocks(
        self, name: str, blocks: np.ndarray, type: str, factors: np.ndarray | None = None
    ) -> None: ...


class SeenOutput(Protocol):
    """The same of the output matrix."""

    @property
    def walk(self) -> Walked: ...
    @property
    def place(self) -> Place: ...
    def visit(self, make: MomentsOf) -> Moments: ...


BLOCK = 256  # columns of the largest block of any type
EVERY = 6  # of the batches, one is held back
WIDEST = 16384  # columns; sums of their square, of two parts and two products, take 4 GiB
NO_SCALES: Mapping[str, torch.Tensor] = MappingProxyType({})
STRENGTH = 256  # tokens of the whole layer that every expert's moments are drawn by


@dataclass(frozen=True)
class Settings:
    """alpha: share of the corrections of targets, None: by held-back chunks; damping: of second moments, times their
    mean; widest: columns of the largest square, see `column_parts`."""

    effort: Effort
    alpha: float | None = None
    damping: float = 0.01
    widest: int = WIDEST


@dataclass(frozen=True)
class Made:
    """Blocks u8 [n_mat, n_rows, row_bytes] of a tensor, and how far its outputs are from their target.

    fitted, held: Σ|error|² with these blocks over that with plain ones, on the fitted and the held-back chunks:
    (plain, made). compensated: False where the type, or the width, left only plain blocks.
    factors: f32 [n_cols], what the columns in the blocks are multiplied with, and the weights of `norm` are to be
    divided by; scales: f32 [n_mat], what decoded blocks are to be multiplied with; None: nothing.
    """

    name: str
    blocks: np.ndarray
    type: str
    compensated: bool
    shares: Shares = NO_SHARES
    fitted: tuple[float, float] = (0.0, 0.0)
    held: tuple[float, float] = (0.0, 0.0)
    norm: str | None = None
    factors: np.ndarray | None = None
    scales: np.ndarray | None = None

    @property
    def in_blocks(self) -> np.ndarray | None:
        """f32, to be spread over [n_mat, n_rows, n_cols]: what the weights are multiplied with in the blocks."""
        if self.scales is None:
            return self.factors
        stretched = 1 / self.scales[:, None, None]
        return stretched if self.factors is None else stretched * self.factors


def held_back(n_batches: int) -> Callable[[int], bool]:
    """Whether a batch is held back; with fewer than EVERY batches only the last is."""
    return partial(is_held, every=min(EVERY, n_batches))


def moments_of(walk: Walked, place: Place, two_streams: bool, part: slice | None) -> MomentsOf:
    every = min(EVERY, len(walk.batches))
    return MomentsOf(place.n_mat, place.n_cols, every, two_streams, walk.loaded.device, part)


def quantize_layer(
    layer: SeenLayer,
    types: Mapping[str, str],
    settings: Settings,
    workers: Workers,
    two_streams: bool,
    norms: Collection[str] = (),
    scaled: Collection[str] = (),
) -> list[Made]:
    """Blocks for every tensor of `types` (GGUF name → type) that the layer comes to; the changed stream follows.

    norms: whose weights may change; scaled: tensors with a factor of their own for every matrix.
    """
    made: list[Made] = []
    tried = norms and any(_can_balance(place, types) for place in layer.places)
    for place in layer.with_norms() if tried else layer.places:
        parts = column_parts(place.n_cols, settings.widest)
        names = [name for name, _ in place.takers if name in types]
        if len(parts) > 1:  # a part of the columns must be a part of every row
            names = [name for name in names if _columns(layer, name) is None]
        if not names:
            continue
        norm = place.norm if place.norm in norms and _can_balance(place, types) else None
        scales = {name: tensor_scale(layer.weight(name)) for name in names if name in scaled}
        found = []
        for part in parts:
            only = None if len(parts) == 1 else part
            moments = layer.visit(place, moments_of(layer.walk, place, two_streams, only))
            found.append(
                _at_place(layer, place, names, types, settings, moments, workers, part, norm, scales)
            )
        made += [side_by_side(of_one) for of_one in zip(*found, strict=True)]
        if two_streams:
            for one in made[-len(names) :]:
                layer.change_blocks(one.name, one.blocks, one.type, one.in_blocks)
    return made


def column_parts(n_cols: int, widest: int) -> list[slice]:
    """All columns, or as few equal parts of whole blocks as keep each at `widest`: what moments are summed of.

    Second moments between parts are taken for zero, so that errors of one part are not made good in another.
    """
    count = -(-n_cols // widest)
    step = -(-n_cols // (count * BLOCK)) * BLOCK if count > 1 else n_cols
    return [slice(first, min(first + step, n_cols)) for first in range(0, n_cols, step)]


def _can_balance(place: Place, types: Mapping[str, str]) -> bool:
    return can_balance(types.get(name) for name, _ in place.takers)


def side_by_side(parts: Sequence[Made]) -> Made:
    """Columns of one tensor, solved in parts."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def total(pairs: list[tuple[float, float]]) -> tuple[float, float]:
        return sum(before for before, _ in pairs), sum(after for _, after in pairs)

    return replace(
        first,
        blocks=np.concatenate([one.blocks for one in parts], -1),
        shares=Shares(sum(one.shares.input for one in parts) / len(parts)),
        fitted=total([one.fitted for one in parts]),
        held=total([one.held for one in parts]),
        factors=None if first.norm is None else np.concatenate([one.factors for one in parts]),  # type: ignore[misc]
    )


def _at_place(
    layer: SeenLayer,
    place: Place,
    names: list[str],
    types: Mapping[str, str],
    settings: Settings,
    moments: Moments,
    workers: Workers,
    part: slice,
    norm: str | None,
    scales: Mapping[str, torch.Tensor],
) -> list[Made]:
    """Tensors of one type that take the same columns are solved together: their rows are rows of one matrix."""
    groups: dict[tuple[str, bytes], list[str]] = {}
    for name in names:
        index = _columns(layer, name)
        key = b"" if index is None else index.tobytes()
        groups.setdefault((types[name], key), []).append(name)
    found: dict[str, Made] = {}
    factors = None if norm is None else column_factors(moments)
    for (type, key), members in groups.items():
        index = _columns(layer, members[0])
        own = moments if not key else moments.columns(torch.from_numpy(index).to(moments.square.device))
        weights = [layer.weight(name) for name in members]
        if place.n_mat == 1:  # heads of one input are rows like any others
            weights = [matrix.reshape(1, -1, matrix.shape[-1]) for matrix in weights]
        if not key:
            weights = [matrix[..., part] for matrix in weights]
        with naming(*members):
            metric = fitted_metric(own, settings)
            made = solved(weights, members, type, settings, own, metric, workers, norm, factors, scales)
        found |= {one.name: one for one in made}
    return [found[name] for name in names]


def _columns(layer: SeenLayer, name: str) -> np.ndarray | None:
    """Which columns of the input a tensor takes, None: all, in order."""
    view = layer.walk.loaded.table.views[name]
    columns = view.rows if view.transpose else view.columns
    if columns is None:
        return None
    n = view.source_matrix[0] if view.transpose else view.source_matrix[1]
    return np.arange(n)[columns]


def fitted_metric(moments: Moments, settings: Settings) -> Metric:
    """What an error costs, by the chunks that codes are fitted to."""
    means = shrunk(moments.square[FITTED], moments.counts[FITTED], STRENGTH)
    return metric_of(means, settings.damping)


def solved(
    weights: list[torch.Tensor],
    names: list[str],
    type: str,
    settings: Settings,
    moments: Moments,
    metric: Metric,
    workers: Workers,
    norm: str | None = None,
    factors: torch.Tensor | None = None,
    scales: Mapping[str, torch.Tensor] = NO_SCALES,
) -> list[Made]:
    """Tensors [n_mat, n_rows, n_cols] f32 of one type that take the same columns, solved as rows of one matrix.

    metric: of the fitted part of `moments`, `fitted_metric`. factors: [n_cols] f32, to be exchanged with the norm's
    weights; scales: [n_mat] f32 of the tensors that have them.
    """
    sizes = [matrix.shape[1] for matrix in weights]
    whole = torch.cat(weights, 1)
    if not solvable(type):
        blocks = plain(whole, metric.diagonal, type)
        return [
            Made(name, part.contiguous().cpu().numpy(), type, False)
            for name, part in zip(names, blocks.split(sizes, 1), strict=True)
        ]
    target, shares = target_of(whole, moments, metric, STRENGTH, settings.alpha)
    inside = target if factors is None else target * factors
    inside = divided(inside, [scales.get(name) for name in names], sizes)
    within = metric if factors is None else metric.between(factors)
    start, blocks = solve(inside, within, type, settings.effort, workers.map)
    made = []
    for name, wanted, before, after in zip(
        names, target.split(sizes, 1), start.split(sizes, 1), blocks.split(sizes, 1), strict=True
    ):
        one = Made(
            name,
            after.contiguous().cpu().numpy(),
            type,
            True,
            shares,
            norm=norm,
            factors=None if factors is None else factors.cpu().numpy(),
            scales=scales[name].cpu().numpy() if name in scales else None,
        )
        stretched = None if one.in_blocks is None else torch.from_numpy(one.in_blocks).to(wanted)
        differences = []
        for values in (dequantize(found, type).to(wanted) for found in (before, after)):
            differences.append((values if stretched is None else values / stretched) - wanted)
        fitted, held = (
            (moments.error(part, differences[0]), moments.error(part, differences[1]))
            for part in (FITTED, HELD)
        )
        made.append(replace(one, fitted=fitted, held=held))
    return made
