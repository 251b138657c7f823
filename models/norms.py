"""Which norm stands before the matrices of a place, with nothing else behind it: found by trying.

Where the norm's weights times t, and the columns of those matrices divided by t, let the layer put out what it did
before, a file may hold one in place of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from quantmill.models.held import HeldLinear, first_of
from quantmill.models.places import Place, weight_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantmill.models.walked_layer import Layer

_SAME = 1e-4  # of the output's norm, beside which the trial changes the norm's weights by up to 2 times
_GOLDEN = 0.618034  # whose multiples lie evenly between whole numbers, in no order that a head or a block has


def with_norms(layer: Layer, places: Iterable[Place]) -> tuple[Place, ...]:
    """The places with their norms, by passes of the first batch of the original stream through the layer."""
    found = tuple(places)
    norms = _norms(layer)
    if not norms:
        return found
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in norms}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out, name=name: outputs[name].append(out))
        for name, module in norms.items()
    ]
    try:
        out = _passed(layer, noting=True)
    finally:
        for hook in hooks:
            hook.remove()
    entering = {module: inputs[0] for module, inputs in layer.run.seen}
    return tuple(_with_norm(layer, place, entering, norms, outputs, out) for place in found)


def _norms(layer: Layer) -> dict[str, nn.Module]:
    """GGUF name of the weights → the module, of those in the layer that only multiply with a vector."""
    table, prefix = layer.walk.loaded.table, layer.walk.prefixes[layer.index]
    found = {}
    for name, module in layer.held.layer.named_modules():
        parameters = dict(module.named_parameters())
        uses = table.uses.get(f"{prefix}.{name}.weight", ())
        if list(parameters) == ["weight"] and parameters["weight"].dim() == 1 and len(uses) == 1:
            found[uses[0].name] = module
    return found


def _passed(layer: Layer, changed: bool = False, noting: bool = False) -> torch.Tensor:
    """What the layer puts out for the first batch that is here."""
    batch = layer.walk.own[0]
    layer.run.begin(changed=changed, noting=noting)
    return first_of(layer._pass(layer.walk.original[batch], layer.walk.courses[batch]))


def _with_norm(
    layer: Layer,
    place: Place,
    entering: dict[nn.Module, torch.Tensor],
    norms: dict[str, nn.Module],
    outputs: dict[str, list[torch.Tensor]],
    out: torch.Tensor,
) -> Place:
    x = entering[place.module]
    names = [name for name, given in outputs.items() if any(one is x for one in given)]
    holders = {layer.held.matrices[hf_name] for _, hf_name in place.takers}
    # an indexer that takes it too would show only in a text from which it leaves tokens out
    others = any(one.data_ptr() == x.data_ptr() and module not in holders for module, one in entering.items())
    if len(names) != 1 or others or place.n_mat > 1 or not _takes_all(layer, place):
        return place
    with _exchanged(layer, place, names[0], norms[names[0]]):
        tried = _passed(layer, changed=True)
    same = bool((tried - out).norm() <= _SAME * out.norm())
    return replace(place, norm=names[0]) if same else place


def _takes_all(layer: Layer, place: Place) -> bool:
    """Whether the place's matrices come from its takers alone, all columns of them in order."""
    table, taken = layer.walk.loaded.table, {name for name, _ in place.takers}
    views = [table.views[name] for name in taken]
    uses = {use.name for _, hf_name in place.takers for use in table.uses[hf_name]}
    return uses == taken and all(view.columns is None and not view.transpose for view in views)


@contextmanager
def _exchanged(layer: Layer, place: Place, norm: str, module: Any) -> Iterator[None]:
    """Numbers between 1 and 2 multiplied into the norm and divided out of the changed stream's matrices."""
    loaded = layer.walk.loaded
    table, before = loaded.table, module.weight
    factors = (1 + _GOLDEN * np.arange(place.n_cols) % 1).astype(np.float32)
    stored = weight_of(loaded, norm).cpu().numpy().reshape(-1) * factors
    hf_name = next(name for name, uses in table.uses.items() if any(use.name == norm for use in uses))
    made = table.to_hf(hf_name, lambda name: stored.reshape(table.views[name].shape)).astype(np.float32)
    columns = torch.from_numpy(factors).to(before)
    holders = [layer.held.matrices[hf_name] for hf_name in {hf_name for _, hf_name in place.takers}]
    module.weight = nn.Parameter(torch.from_numpy(made).to(before), requires_grad=False)
    for holder in holders:
        assert isinstance(holder, HeldLinear)
        holder.changed = holder.original / columns
    try:
        yield
    finally:
        module.weight = before
        for holder in holders:
            holder.changed = holder.original
