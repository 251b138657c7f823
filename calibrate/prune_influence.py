"""What layers and experts do to a text, from one pass of the model: block influence, saliency, routing.

Block influence of a layer, or of a run of them, is 1 − the mean cosine of a token's hidden state before and behind
(ShortGPT, arXiv 2403.03853). The saliency of an expert is the mean, over the tokens that are routed to it, of its
routing weight times the norm of what it puts out, weights of a token summing to one (REAP, arXiv 2510.13999).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from quantmill.calibrate.errors import CalibrationError
from quantmill.models.capture import named_layers
from quantmill.models.experts import is_recordable, recording_forward
from quantmill.models.model import LoadedModel
from quantmill.models.scoring import BATCH_TOKENS, input_ids


@dataclass(frozen=True)
class Influence:
    """cosines: [n_layers + 1, n_layers + 1] f64, mean over tokens between the hidden states before layer i and before
    layer j; before the layer behind the last: what enters the head's norm.
    saliency: layer → [n_experts] f64; routed: layer → tokens that went to each, [n_experts] i64.
    """

    cosines: np.ndarray
    saliency: Mapping[int, np.ndarray]
    routed: Mapping[int, np.ndarray]

    @property
    def n_layers(self) -> int:
        return len(self.cosines) - 1

    def of_run(self, first: int, n: int = 1) -> float:
        """Block influence of n layers from `first` on, or of one."""
        return 1.0 - float(self.cosines[first, first + n])


class _Experts:
    """Sums over the tokens that were routed to each expert of a layer."""

    def __init__(self, n_experts: int) -> None:
        self.strength, self.counts = np.zeros(n_experts), np.zeros(n_experts, np.int64)

    def forward(
        self, module: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        shares = (weights.float() / weights.float().sum(-1, keepdim=True)).flatten()

        def made(expert: int, out: torch.Tensor, places: torch.Tensor) -> None:
            strength = shares[places] * out.float().norm(dim=-1)
            self.strength[expert] += float(strength.sum(dtype=torch.float64))
            self.counts[expert] += len(out)

        return recording_forward(module, _unseen, (0, 1), False, hidden, index, weights, made)

    @property
    def saliency(self) -> np.ndarray:
        return self.strength / np.maximum(self.counts, 1)


def _unseen(which: int, expert: int, x: torch.Tensor) -> None:
    """What enters experts' matrices does not matter here."""


def influence_of(
    loaded: LoadedModel, chunks: np.ndarray, advance: Callable[[int], None] = lambda chunks: None
) -> Influence:
    """chunks [n_chunk, n_ctx] i32. In memory: the hidden states of one batch before every layer.

    Raises CalibrationError for hidden states that are not finite, naming layer and chunk.
    """
    path, layers = named_layers(loaded.model)
    step = max(1, BATCH_TOKENS // chunks.shape[1])
    total, n_tokens = np.zeros((len(layers) + 1,) * 2), 0
    with ExitStack() as stack:
        states: list[torch.Tensor] = []
        for layer in layers:
            handle = layer.register_forward_pre_hook(partial(_enters, states), with_kwargs=True)
            stack.callback(handle.remove)
        stack.callback(layers[-1].register_forward_hook(partial(_leaves, states)).remove)
        experts = stack.enter_context(_watched(loaded, path, layers))
        for first in range(0, len(chunks), step):
            part = chunks[first : first + step]
            states.clear()
            loaded.logits(input_ids(loaded, part), first=part.shape[1] - 1)
            _check(states, loaded, first)
            units = [nn.functional.normalize(state.flatten(0, -2).float(), dim=-1) for state in states]
            n_tokens += len(units[0])
            for i, one in enumerate(units):
                for j in range(i + 1, len(units)):
                    total[i, j] += float((one * units[j]).sum(dtype=torch.float64))
            advance(len(part))
    return Influence(
        total / n_tokens,
        {layer: found.saliency for layer, found in experts.items()},
        {layer: found.counts for layer, found in experts.items()},
    )


def _enters(states: list[torch.Tensor], layer: nn.Module, inputs: tuple[Any, ...], named: Any) -> None:
    states.append(inputs[0] if inputs else named["hidden_states"])


def _leaves(states: list[torch.Tensor], layer: nn.Module, inputs: Any, output: Any) -> None:
    states.append(output[0] if isinstance(output, tuple) else output)


def _check(states: Sequence[torch.Tensor], loaded: LoadedModel, first: int) -> None:
    for layer, state in enumerate(states):
        bad = ~state.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            raise CalibrationError(
                f"{loaded.path}: hidden states before layer {layer} are not finite in chunk "
                f"{first + int(bad.nonzero()[0]) + 1} of the text; the model is damaged, or that text is"
            )


@contextmanager
def _watched(loaded: LoadedModel, path: str, layers: nn.ModuleList) -> Iterator[dict[int, _Experts]]:
    found: dict[int, _Experts] = {}
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            for module in layer.modules():
                if is_recordable(module):
                    found[number] = _Experts(int(module.num_experts))  # type: ignore[arg-type]
                    object.__setattr__(module, "forward", partial(found[number].forward, module))
                    stack.callback(object.__delattr__, module, "forward")
        yield found
