"""A layer whose matrices are held decoded, twice: as they were and as they will be.

One layer at a time is treated so (walk.py). Which of the two a product takes, and where a pass ends early, is said by
the thread that runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from quantmill.models.experts import is_recordable, recording_forward
from quantmill.models.packed import PackedExperts, PackedLinear, by_group


class Reached(Exception):
    """The pass has come to its place."""


class Pass(threading.local):
    """What the running pass of this thread is: changed: take the matrices as they will be.

    until: the module before whose product the pass ends; given: what parts of the layer are known to put out, which
    are then not run; seen: what entered each module, when `noting` of all; outputs: what those parts of the layer
    put out that hold matrices, by name, in order; products: what stacks of experts put out, by id.
    """

    def __init__(self) -> None:
        self.begin(changed=False)

    def begin(
        self,
        changed: bool,
        until: nn.Module | None = None,
        noting: bool = False,
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.changed, self.until, self.noting, self.given = changed, until, noting, given
        self.seen: list[tuple[nn.Module, tuple[torch.Tensor, ...]]] = []
        self.outputs: dict[str, Any] = {}
        self.products: dict[int, torch.Tensor] = {}

    def enter(self, module: nn.Module, *inputs: torch.Tensor) -> None:
        if self.noting or module is self.until:
            self.seen.append((module, inputs))
        if module is self.until:
            raise Reached


class HeldLinear(nn.Module):
    """Stands for a PackedLinear. `matrices`: as it was, and as it will be, [n_rows, n_cols].

    One whose rows have inputs of their own, group by group, is no place: there is no one input to sum.
    """

    def __init__(self, packed: PackedLinear, run: Pass, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.bias, self.groups = packed.bias, packed.groups
        self.run = run
        self.original = packed.weight.matrix(0, dtype)
        self.changed = self.original

    @property
    def weight(self) -> torch.Tensor:
        return self.changed if self.run.changed else self.original

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.groups > 1:
            return by_group(x, self.weight, self.groups)
        self.run.enter(self, x)
        return F.linear(x, self.weight, self.bias)


class HeldStack:
    """Stands for a PackedExperts: a matrix of each expert, [n_experts, n_rows, n_cols]."""

    def __init__(self, packed: PackedExperts, run: Pass) -> None:
        self.run, self.device, self.shape = run, packed.device, packed.shape
        self.original = torch.stack([packed[i] for i in range(len(packed))])
        self.changed = self.original

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, expert: int | torch.Tensor | list[int]) -> torch.Tensor:
        """Matrices of a list of experts [n, n_rows, n_cols], or the one of a single expert."""
        stack = self.changed if self.run.changed else self.original
        if isinstance(expert, list):
            return stack[expert[0] : expert[0] + 1] if len(expert) == 1 else stack[expert]
        return stack[int(expert)]


@dataclass(frozen=True, eq=False)
class HeldLayer:
    """A decoder layer with its matrices held. close() puts the packed ones back.

    matrices: Hugging Face name of a weight → what holds it; stacks: the modules whose experts can be watched.
    """

    layer: nn.Module
    run: Pass
    matrices: dict[str, HeldLinear | HeldStack]
    stacks: dict[str, nn.Module]
    undo: list[Any]

    def close(self) -> None:
        for put_back in reversed(self.undo):
            put_back()


def hold(layer: nn.Module, prefix: str, run: Pass, dtype: torch.dtype) -> HeldLayer:
    """Decode the matrices of `layer`, whose modules are called `prefix`.… in the model."""
    held = HeldLayer(layer, run, {}, {}, [])
    for name, module in list(layer.named_modules()):
        full = f"{prefix}.{name}"
        parent_name, _, attribute = name.rpartition(".")
        if isinstance(module, PackedLinear):
            parent = layer.get_submodule(parent_name)
            new = HeldLinear(module, run, dtype)
            held.matrices[f"{full}.weight"] = new
            setattr(parent, attribute, new)
            held.undo.append(partial(setattr, parent, attribute, module))
        elif isinstance(module, PackedExperts):
            parent = layer.get_submodule(parent_name)
            stack = HeldStack(module, run)
            held.matrices[full] = stack
            delattr(parent, attribute)
            object.__setattr__(parent, attribute, stack)
            held.undo.append(partial(_put_back, parent, attribute, module))
    for name, module in list(layer.named_modules()):
        if any(isinstance(value, HeldStack) for value in vars(module).values()) and is_recordable(module):
            held.stacks[f"{prefix}.{name}"] = module
            object.__setattr__(module, "forward", partial(_experts_forward, module, run))
            held.undo.append(partial(object.__delattr__, module, "forward"))
    for name, part in layer.named_children():
        if _holds_matrices(part):
            before = vars(part).get("forward")
            object.__setattr__(part, "forward", partial(_part_forward, part.forward, run, name))
            held.undo.append(partial(_forward_again, part, before))
    return held


def _forward_again(part: nn.Module, before: Any) -> None:
    if before is None:
        object.__delattr__(part, "forward")
    else:
        object.__setattr__(part, "forward", before)


def _holds_matrices(part: nn.Module) -> bool:
    """Whether products are taken somewhere in this part of a held layer."""
    return any(
        isinstance(m, HeldLinear) or any(isinstance(v, HeldStack) for v in vars(m).values())
        for m in part.modules()
    )


def _put_back(parent: nn.Module, attribute: str, module: nn.Module) -> None:
    object.__delattr__(parent, attribute)
    setattr(parent, attribute, module)


def _experts_forward(
    module: nn.Module, run: Pass, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    run.enter(module, hidden, index, weights)
    out = recording_forward(module, _unseen, (0, 1), False, hidden, index, weights)
    run.products[id(module)] = out
    return out


def _unseen(which: int, expert: int, x: torch.Tensor) -> None:
    """What enters single experts is worked out by whoever stops at the stack."""


def _part_forward(forward: Callable[..., Any], run: Pass, name: str, *inputs: Any, **named: Any) -> Any:
    output = run.given[name] if name in run.given else forward(*inputs, **named)
    run.outputs[name] = output
    return output


def first_of(output: Any) -> torch.Tensor:
    """Hidden states, of what a layer or a part of one puts out."""
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, torch.Tensor)
    return first
