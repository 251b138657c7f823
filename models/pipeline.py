"""A model on several devices of one host: its layers in runs, each on a device, what lies outside them on the first.

    stages = stages_for(n_bytes, torch.device("cuda"))      # empty: one device holds it, or all together do not
    spread(model, stages)

Batches pass the devices one after the other (accelerate brings to each layer what it is given), so that a model runs
which none of them holds; it is no faster than one device would be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from quantmill.models.capture import named_layers
from quantmill.models.errors import ModelError

SHARE = 0.75  # of a device's free memory for weights; the rest is for activations


@dataclass(frozen=True)
class Stage:
    """A device, and how many bytes of weights it may hold."""

    device: torch.device
    room: int


def room_on(device: torch.device) -> int:
    """Bytes of weights that a CUDA device may hold."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(SHARE * free)


def stages_for(n_bytes: int, device: torch.device) -> list[Stage]:
    """All CUDA devices, where `device` is none of them in particular and the first alone does not hold the weights;
    none where these do not fit on all together."""
    if device.type != "cuda" or device.index is not None or torch.cuda.device_count() < 2:
        return []
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    stages = [Stage(one, room_on(one)) for one in devices]
    fits_on_one = n_bytes < stages[0].room
    return [] if fits_on_one or n_bytes >= sum(stage.room for stage in stages) else stages


def runs(sizes: Sequence[int], outside: int, room: Sequence[int]) -> list[int] | None:
    """The number of each layer's device, in order, so that all are filled to a like share; None where they do not fit.

    sizes: bytes of the layers; outside: of the rest, which the first device has too; room: bytes of the devices.
    """
    steps = 256
    for step in range(steps + 1):  # the least share with which they fit
        found = _filled(sizes, outside, [one * step // steps for one in room])
        if found is not None:
            return found
    return None


def _filled(sizes: Sequence[int], outside: int, room: Sequence[int]) -> list[int] | None:
    left, at, found = [room[0] - outside, *room[1:]], 0, []
    if left[0] < 0:
        return None
    for size in sizes:
        while at < len(left) and left[at] < size:
            at += 1
        if at == len(left):
            return None
        left[at] -= size
        found.append(at)
    return found


def spread(model: Any, stages: Sequence[Stage]) -> None:
    """model: on the CPU. It is given what the first device holds, and gives it there. Raises ModelError where it does
    not fit."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    from accelerate.utils import send_to_device

    _, layers = named_layers(model)
    sizes = [_n_bytes(layer) for layer in layers]
    numbers = runs(sizes, _n_bytes(model) - sum(sizes), [stage.room for stage in stages])
    if numbers is None:
        raise ModelError(
            f"{type(model).__name__}: its layers do not fit on {len(stages)} devices together; use --stream"
        )
    first = stages[0].device
    inside = {id(module) for layer in layers for module in layer.modules()}
    _move_own([module for module in model.modules() if id(module) not in inside], first)
    for layer, number in zip(layers, numbers, strict=True):
        device = stages[number].device
        layer.to(device)
        add_hook_to_module(layer, AlignDevicesHook(execution_device=device), append=True)
    layers[-1].register_forward_hook(lambda module, given, found: send_to_device(found, first))


def _n_bytes(module: nn.Module) -> int:
    tensors = {id(one): one for one in chain(module.parameters(), module.buffers())}
    return sum(one.numel() * one.element_size() for one in tensors.values())


def _move_own(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Not what lies below them. What two of them share stays one tensor."""
    moved: dict[
        int, tuple[torch.Tensor, torch.Tensor]
    ] = {}  # the old one is held, so that its number stays its own
    for module in modules:
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            _, module._buffers[name] = moved.setdefault(id(buffer), (buffer, buffer.to(device)))
