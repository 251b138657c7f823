"""What a model gives each of its layers beside the hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
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


# What layers hand each other beside the hidden states: GLM-5's the tokens that an indexer has chosen, which they put
# out behind the states; Gemma's keys and values, for which they are given a store.
PUT_OUT, _STORE = "prev_topk_indices", "shared_kv_states"


class _Enough(Exception):
    """All layers have been called."""


def puts_out_more(layer: nn.Module) -> bool:
    """Whether the next layer is given what this one puts out behind the hidden states."""
    return PUT_OUT in inspect.signature(type(layer).forward).parameters


def capture(model: Any, layers: nn.ModuleList, ids: torch.Tensor) -> list[Call]:
    """What each layer is given for ids [n_seq, n_ctx] when the layers before it do nothing."""
    calls: list[Call] = []

    def stub(hidden_states: torch.Tensor, *rest: Any, _layer: nn.Module, **named: Any) -> Any:
        names = list(inspect.signature(type(_layer).forward).parameters)[2:]
        calls.append(Call(hidden_states, dict(zip(names, rest, strict=False)) | named))
        if len(calls) == len(layers):
            raise _Enough
        return (hidden_states, None) if puts_out_more(_layer) else hidden_states

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


class Course:
    """What the layers are given beside the hidden states on the way of one batch through the model."""

    def __init__(
        self, layers: nn.ModuleList, of_all: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]
    ) -> None:
        """of_all: of every text, by layer; own: what this one's text makes different."""
        self._of_all, self._own = of_all, own
        self._more = puts_out_more(layers[0])
        self._put_out: tuple[int, Any] = (0, None)  # layer that is given it
        stores = [given[_STORE] for given in of_all if given.get(_STORE) is not None]
        self._kept = {_STORE: type(stores[0])()} if stores else {}

    def again(self) -> Course:
        """The same for another stream of the batch."""
        other = copy(self)
        other._kept = {name: type(store)() for name, store in self._kept.items()}
        return other

    def arguments(self, layer: int) -> dict[str, Any]:
        found = self._of_all[layer] | self._own[layer] | self._kept
        if self._more:
            given_to, found[PUT_OUT] = self._put_out
            assert given_to == layer
        return found

    def passed(self, layer: int, output: Any) -> None:
        """It has gone through a layer, for good."""
        if self._more:
            self._put_out = (layer + 1, output[1])


def enter(
    model: Any, layers: nn.ModuleList, batches: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[Course]]:
    """What enters the first layer of each of the batches [n_seq, n_ctx], and what all are given beside it.

    What does not depend on the text is kept once for batches of one shape: a mask may have a row for each sequence.
    """
    entering: list[torch.Tensor] = [torch.empty(0)] * len(batches)
    courses: list[Any] = [None] * len(batches)
    for shape in {batch.shape for batch in batches}:
        numbers = [number for number, batch in enumerate(batches) if batch.shape == shape]
        of_all, names = _of_all(model, layers, batches[numbers[0]])
        for number in numbers:
            calls = capture(model, layers, batches[number])
            own = [
                {name: call.arguments[name] for name in some} for call, some in zip(calls, names, strict=True)
            ]
            entering[number], courses[number] = calls[0].hidden, Course(layers, of_all, own)
    return entering, courses


def widths(model: Any, layers: nn.ModuleList, sample: torch.Tensor) -> tuple[int, int]:
    """Numbers that a token is between two layers, and bytes that are kept of each token beside them, for all layers.

    sample: ids [n_seq, n_ctx].
    """
    calls = capture(model, layers, sample)
    names = _of_all(model, layers, sample)[1]
    own = [call.arguments[name] for call, some in zip(calls, names, strict=True) for name in some]
    stores = [value.untyped_storage() for value in own if isinstance(value, torch.Tensor)]
    n_bytes = sum(
        {store.data_ptr(): store.nbytes() for store in stores}.values()
    )  # layers may be given views of one
    return calls[0].hidden.numel() // sample.numel(), n_bytes // sample.numel()


def _of_all(
    model: Any, layers: nn.ModuleList, sample: torch.Tensor
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """By layer: what each text of this shape is given, and the names of what depends on the text."""
    calls = capture(model, layers, sample)
    others = capture(model, layers, torch.where(sample == 0, 1, 0))
    names = [
        [
            name
            for name, value in one.arguments.items()
            if name != _STORE and not equal(value, other.arguments[name])
        ]
        for one, other in zip(calls, others, strict=True)
    ]
    of_all = [
        {name: value for name, value in call.arguments.items() if name not in some}
        for call, some in zip(calls, names, strict=True)
    ]
    return of_all, names


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
