"""Healing without training: matrices around a cut are refitted by least squares, so that the pruned model's hidden
states are again those of the original.

Two walks go side by side: the original's, and the pruned model's on what is healed so far. A layer of the pruned model
shall put out what the original has just before the next layer that stays: for the layer before a cut that is what came
behind all the layers that are gone (ReplaceMe, arXiv 2505.02819, which fits T in h + T·mlp(h); here the whole ffn_down
is free, not its square part alone). The layers behind it make good what is still missing. Of experts, all `ffn_down` of
a layer are fitted together to what the missing ones put out. Rows are weighed by what they are relative to the hidden
state, for that is how the next norm sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quantmill.calibrate.layer import held_back
from quantmill.calibrate.prune_solve import Change, Routed, Rows, solve_experts, solve_matrix
from quantmill.models.experts import by_expert, entering_down
from quantmill.models.held import first_of
from quantmill.models.places import Place
from quantmill.models.walk import Walk
from quantmill.models.walked_layer import Layer

Target = Callable[[Place, int], "torch.Tensor | None"]  # what is missing behind a place in a batch


@dataclass(frozen=True)
class Refit:
    """A tensor of the pruned model and its new values [n_mat, n_rows, n_cols] f32.

    before, after: how far the layer's hidden states were from the original's, on chunks held back, relative to them.
    """

    name: str
    values: torch.Tensor
    before: float
    after: float


@dataclass(frozen=True)
class _Wanted:
    """What the original has, batch by batch: before and behind the layer itself, what its parts put out, and what it
    has before the next layer that stays."""

    entering: Mapping[int, torch.Tensor]
    behind: Mapping[int, torch.Tensor]
    parts: Sequence[Mapping[str, Any]]
    next: Mapping[int, torch.Tensor]


def heal(
    original: Walk, pruned: Walk, layers: Sequence[int], first: int, with_attention: bool = True
) -> Iterator[Refit]:
    """Walks of one stream over the same chunks. layers: those of the original that the pruned model has, ascending;
    first: the first layer of the pruned model that can make something good, what is before it being as it was.

    Yields what was refitted, layer by layer; nothing where nothing is gained on chunks held back.
    """
    for index in range(layers[first]):
        original.pass_layer(index)
    if layers[first] == first:  # else layers are gone before it, and its stream is its own from the beginning
        pruned.original.put(original.original)
    for layer in pruned.layers(first):
        old = layers[layer.index]
        following = layers[layer.index + 1] if layer.index + 1 < len(layers) else len(original.modules)
        entering = dict(original.original)
        parts = original.pass_layer(old)
        behind = dict(original.original)
        for index in range(old + 1, following):
            original.pass_layer(index)
        wanted = _Wanted(entering, behind, parts, original.original)
        attention = with_attention and following == old + 1
        yield from _LayerHealing(layer, wanted).refits(attention)


class _LayerHealing:
    """One layer of the pruned model, and what the original has there."""

    def __init__(self, layer: Layer, wanted: _Wanted) -> None:
        self.layer, self.wanted, self.walk = layer, wanted, layer.walk
        batches = range(len(self.walk.batches))
        held = held_back(len(batches))
        self.fitted = [batch for batch in batches if not held(batch)]
        self.held = [batch for batch in batches if held(batch)]
        # The scale at which a hidden state is seen: √ω of each token.
        self.scale = [
            _flat(wanted.next[batch]).norm(dim=-1, keepdim=True).clamp_min(1e-6).reciprocal()
            for batch in batches
        ]

    @torch.inference_mode()
    def refits(self, with_attention: bool) -> Iterator[Refit]:
        places = [place for place in self.layer.places if place.writes is not None or place.down]
        for place in places:
            if len(place.takers) != 1 or self.walk.loaded.table.views[place.takers[0][0]].transpose:
                continue
            last = place is places[-1]
            if not last and not with_attention:
                continue
            target = self._last if last else self._middle
            if any(target(place, batch) is None for batch in self.held[:1]):
                continue
            found = self._refit(place, target)
            if found is not None:
                yield found

    def _refit(self, place: Place, target: Target) -> Refit | None:
        name, change = place.takers[0][0], self._solved(place, target)
        if change.delta is None:
            return None
        before = self._error(place, target)
        old = self.layer.weight(name)
        self.layer.change(name, old + change.delta)
        self.layer.again()
        after = self._error(place, target)
        if not after < before:  # its product is not simply added to the stream
            self.layer.change(name, old)
            self.layer.again()
            return None
        return Refit(name, old + change.delta, before, after)

    def _solved(self, place: Place, target: Target) -> Change:
        share_out = self.walk.share_out
        if place.n_mat == 1:
            fitted, held = (
                [self._rows(place, target, batch) for batch in batches]
                for batches in (self.fitted, self.held)
            )
            return solve_matrix(fitted, held, share_out)
        return solve_experts(
            self._routed(place, target, self.fitted), self._routed(place, target, self.held), share_out
        )

    def _rows(self, place: Place, target: Target, batch: int) -> Rows:
        inputs = self.layer.entering(place, batch)[0]
        return Rows(_flat(inputs) * self.scale[batch], self._missing(place, target, batch))

    def _missing(self, place: Place, target: Target, batch: int) -> torch.Tensor:
        found = target(place, batch)
        assert found is not None
        return _flat(found) * self.scale[batch]

    def _routed(self, place: Place, target: Target, batches: Sequence[int]) -> Routed:
        inputs: list[list[torch.Tensor]] = [[] for _ in range(place.n_mat)]
        tokens: list[list[torch.Tensor]] = [[] for _ in range(place.n_mat)]
        first = 0
        for batch in batches:
            hidden, index, weights = self.layer.entering(place, batch)
            order, ends = by_expert(index, place.n_mat)
            scaled = weights.reshape(-1, 1).float() * self.scale[batch].repeat_interleave(index.shape[1], 0)
            for expert, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
                slots = order[begin:end]
                at = slots // index.shape[1]
                inner = (
                    entering_down(place.module, expert, hidden[at])
                    if end > begin
                    else hidden.new_zeros(0, place.n_cols)
                )
                inputs[expert].append(inner.float() * scaled[slots])
                tokens[expert].append(at + first)
            first += len(hidden)
        missing = torch.cat([self._missing(place, target, batch) for batch in batches])
        return Routed(tuple(map(torch.cat, inputs)), tuple(map(torch.cat, tokens)), missing)

    def _last(self, place: Place, batch: int) -> torch.Tensor | None:
        """What is missing behind the layer."""
        return self.wanted.next[batch] - self.layer.output(batch)

    def _middle(self, place: Place, batch: int) -> torch.Tensor | None:
        """What is missing behind a part of the layer that others follow; None where the original has no such part."""
        part = place.writes
        if part is None or part not in self.wanted.parts[batch]:
            return None
        original = self.wanted.entering[batch] + first_of(self.wanted.parts[batch][part])
        return original - self.walk.original[batch] - self.layer.part_output(batch, part)

    def _error(self, place: Place, target: Target) -> float:
        """Of the held-back chunks: the root of the mean square, relative to the hidden states."""
        squares = [self._missing(place, target, batch).square().sum(-1).double() for batch in self.held]
        return float(torch.cat(squares).mean().sqrt())


def _flat(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.flatten(0, -2).float()
