"""What a model gives each of its layers beside the hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from quantmill.models.errors import ModelError


@dataclass(frozen=True)
class Call:
    """hidden: what enters a layer, [n_seq, n_ctx, n_hidden]; arguments: all else, by name."""

    hidden: torch.Tensor
    arguments: dict[str, Any]


def named_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The path of a model's layers, and the layers.

    Raises ModelError when the model has no list of as many layers as its configuration says.
    """
    wanted = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return path, module
    raise ModelError(f"{type(model).__name__}: has no list of {wanted} layers that could be walked")


# What GLM-5's layers hand on: the tokens that an indexer has chosen.
_HANDED_ON = "prev_topk_indices"


class _Enough(Exception):
    """All layers have been called."""


def capture(model: Any, layers: nn.ModuleList, ids: torch.Tensor) -> list[Call]:
    """What each layer is given for ids [n_seq, n_ctx] when the layers before it do nothing.

    Raises ModelError for layers that hand each other more than hidden states.
    """
    for layer in layers:
        if _HANDED_ON in inspect.signature(type(layer).forward).parameters:
            raise ModelError(
                f"{type(model).__name__}: its layers are given more than the hidden states of a text ({_HANDED_ON}), "
                "so they cannot be walked one by one"
            )
    calls: list[Call] = []

    def stub(hidden_states: torch.Tensor, *rest: Any, _layer: nn.Module, **named: Any) -> Any:
        names = list(inspect.signature(type(_layer).forward).parameters)[2:]
        calls.append(Call(hidden_states, dict(zip(names, rest, strict=False)) | named))
        if len(calls) == len(layers):
            raise _Enough
        return hidden_states

    for layer in layers:
        object.__setattr__(layer, "forward", _bound(stub, layer))
    try:
        model.base_model(input_ids=ids, use_cache=False)
    except _Enough:
        return calls
    finally:
        for layer in layers:
            object.__delattr__(layer, "forward")
    raise ModelError(f"{type(model).__name__}: only {len(calls)} of its {len(layers)} layers were called")


def _bound(stub: Callable[..., Any], layer: nn.Module) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return stub(hidden_states, *rest, _layer=layer, **named)

    return forward


def enter(
    model: Any, layers: nn.ModuleList, batches: Sequence[torch.Tensor], samples: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[Call]]:
    """What enters the first layer of each of the batches [n_seq, n_ctx], and what every layer is given beside it.

    samples: of one shape, on which the latter is looked at. Raises ModelError where it depends on the text.
    """
    first, *others = (capture(model, layers, ids) for ids in samples)
    for call, other in ((first[i], calls[i]) for calls in others for i in range(len(first))):
        if not equal(call.arguments, other.arguments):
            raise ModelError(
                f"{type(model).__name__}: its layers are given more than the hidden states of a text, "
                "so they cannot be walked one by one"
            )
    return [capture(model, layers, ids)[0].hidden for ids in batches], first


@contextmanager
def handing_on(layers: nn.ModuleList, hidden: Callable[[], Any]) -> Iterator[None]:
    """Layers that do nothing but put out what `hidden` says: what lies behind them is done by the model's forward."""

    def forward(*inputs: Any, **named: Any) -> Any:
        return hidden()

    with ExitStack() as stack:
        for layer in layers:
            object.__setattr__(layer, "forward", forward)
            stack.callback(partial(object.__delattr__, layer, "forward"))
        yield


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one is other or one == other
