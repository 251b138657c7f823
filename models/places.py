"""Where activations enter the matrices of a layer, found by watching a pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from quantmill.gguf_io.convert.names import Use
from quantmill.models.held import HeldLayer, HeldLinear, HeldStack, first_of
from quantmill.models.model import LoadedModel
from quantmill.qkernels import to_float32


@dataclass(frozen=True, eq=False)
class Place:
    """Where activations enter matrices. takers: GGUF tensors that take from it, with the Hugging Face weight's name.

    n_mat: experts; down: the second matrix of experts. writes: the part of the layer whose output is this product,
    of experts the sum of their products. norm: GGUF tensor whose weights could be exchanged with factors of the takers'
    columns, see norms.py.
    """

    takers: tuple[tuple[str, str], ...]
    module: nn.Module
    n_cols: int
    n_mat: int = 1
    down: bool = False
    writes: str | None = None
    norm: str | None = None


def find_places(
    loaded: LoadedModel,
    held: HeldLayer,
    hidden: torch.Tensor,
    out: torch.Tensor,
    seen: list[tuple[nn.Module, tuple[torch.Tensor, ...]]],
    outputs: dict[str, Any],
    products: dict[int, torch.Tensor],
) -> tuple[Place, ...]:
    """Modules that are given the same tensor one after the other are one place."""
    hf_names = {id(m): name for name, m in held.matrices.items()}
    experts = {id(m): name for name, m in held.stacks.items()}
    found: list[Place] = []
    last: torch.Tensor | None = None
    for module, (x, *_) in seen:
        if id(module) in experts:
            found += _expert_places(loaded, held, experts[id(module)], module)
            last = None
            continue
        hf_name = hf_names[id(module)]
        takers = tuple((use.name, hf_name) for use in taking(loaded, hf_name))
        if not takers or any(place.module is module for place in found):
            continue
        if last is x and found:
            place = found[-1]
            found[-1] = Place((*place.takers, *takers), place.module, place.n_cols)
        else:
            found.append(Place(takers, module, x.shape[-1]))
        last = x
    return tuple(_with_writer(place, held, hidden, out, seen, outputs, products) for place in found)


def _expert_places(loaded: LoadedModel, held: HeldLayer, prefix: str, module: nn.Module) -> list[Place]:
    places = []
    for down, parts in ((False, ("gate_up_proj", "up_proj")), (True, ("down_proj",))):
        for part in parts:
            hf_name = f"{prefix}.{part}"
            if hf_name not in held.matrices:
                continue
            takers = tuple((use.name, hf_name) for use in taking(loaded, hf_name))
            stack = held.matrices[hf_name]
            assert isinstance(stack, HeldStack)
            if takers:
                n_cols = loaded.table.views[takers[0][0]].shape[-1]
                places.append(Place(takers, module, n_cols, stack.shape[0], down))
    return places


def _with_writer(
    place: Place,
    held: HeldLayer,
    hidden: torch.Tensor,
    out: torch.Tensor,
    seen: list[tuple[nn.Module, tuple[torch.Tensor, ...]]],
    outputs: dict[str, Any],
    products: dict[int, torch.Tensor],
) -> Place:
    """Whether the layer's output is its input plus what its parts give, and this product is one of those."""
    firsts = {name: first_of(output) for name, output in outputs.items()}
    writers = {name: output for name, output in firsts.items() if output.shape == hidden.shape}
    total = hidden + sum(writers.values())
    if (total - out).norm() > 1e-4 * out.norm():
        return place
    if isinstance(place.module, HeldLinear) and len(place.takers) == 1:
        inputs = next(x for module, x in seen if module is place.module)
        product = nn.functional.linear(inputs[0], place.module.original, place.module.bias)
    elif place.down and id(place.module) in products:
        product = products[id(place.module)]
    else:
        return place
    for name, output in writers.items():
        same = product.numel() == output.numel() and product.shape[-1] == output.shape[-1]
        if same and (product.view(output.shape) - output).norm() <= 1e-4 * output.norm():
            return replace(place, writes=name)
    return place


def taking(loaded: LoadedModel, hf_name: str) -> list[Use]:
    """The GGUF matrices whose input is the input of the module of this weight."""
    table = loaded.table
    shape = table.shapes.get(hf_name, ())
    found = []
    for use in table.uses.get(hf_name, ()):
        view = table.views[use.name]
        turned_head = view.transpose and view.matrices > 1 and len(shape) == 2
        of_layer = use.name.startswith("blk.") and use.name.endswith(".weight")
        if len(view.shape) > 1 and of_layer and use.matrix is None and not turned_head:
            found.append(use)
    return found


def weight_of(loaded: LoadedModel, name: str) -> torch.Tensor:
    """A GGUF tensor as the model's file has it: [n_mat, n_rows, n_cols] f32 on the device."""
    assert loaded.source is not None
    view = loaded.table.views[name]
    spec = next(spec for spec in loaded.source.specs() if spec.name == name)
    values = torch.from_numpy(to_float32(loaded.source.read(name), spec.type).copy())
    return values.view(view.matrices, -1, view.shape[-1]).to(loaded.device)
