"""What it costs to give one tensor a type: the KL divergence of the whole model, one tensor changed at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from quantmill.models.exchange import Exchange
from quantmill.models.model import LoadedModel
from quantmill.models.prefix import Prefix
from quantmill.models.scoring import row_slabs
from quantmill.models.workers import Workers

_UNSCORED = 4  # the first of so many parts of a chunk is context only
_HEAD = 4  # what embeddings, head and comparison cost, in layers
Quantized = Callable[[str, str], np.ndarray]  # (tensor, type) → its rows, u8 [n_rows, row_bytes]
Advance = Callable[[int, str], None]  # (cost, tensor)


def n_scored(n_chunk: int, n_ctx: int) -> int:
    """Places of chunks whose predictions are held."""
    return n_chunk * (n_ctx - 1 - n_ctx // _UNSCORED)


class Sensitivity:
    """A loaded GGUF and its own predictions over chunks [n_chunk, n_ctx] i32, held in memory as log p.

    Measurements run a model only from the layer on that holds the tensor; what lies before is run once. The model is
    changed by `put` and otherwise left as it was.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        chunks: np.ndarray,
        workers: Workers,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """names: what tensors are called here → in the model, where that is not the same (layers are left out)."""
        self._names = names
        self._prefix = Prefix(loaded, chunks, chunks.shape[1] // _UNSCORED, workers.map)
        self._exchange = Exchange(loaded)
        self._log_p = self._prefix.map(lambda batch, logits: torch.log_softmax(logits, dim=-1))

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Those that the model uses, by the first layer they touch."""
        found = [(self._position(name), name) for name in names]
        return [name for position, name in sorted(found) if position >= 0]

    def cost(self, name: str) -> int:
        """How long a measurement of a tensor takes, in layers."""
        return self._prefix.n_layers - self._position(name) + _HEAD

    def put(self, name: str, type: str, rows: np.ndarray) -> None:
        """The tensor has these rows from now on, where the model uses it."""
        if self._own(name) in self._exchange:
            self._exchange.put(self._own(name), type, rows)
            self._prefix.restart()

    def kld(self) -> float:
        """Mean KL divergence of the model as it is now from the one that was loaded, in nats a token.

        Raises ModelError for logits that are not finite.
        """

        def one(batch: int, logits: torch.Tensor) -> float:
            ours, theirs = logits.flatten(0, 1), self._log_p[batch].flatten(0, 1)
            total = 0.0
            for rows in row_slabs(*ours.shape):
                log_q = torch.log_softmax(ours[rows], dim=-1)
                total += float((theirs[rows].exp() * (theirs[rows] - log_q)).sum(dtype=torch.float64))
            return total

        return sum(self._prefix.map(one)) / sum(log_p.shape[:2].numel() for log_p in self._log_p)

    def measure(
        self,
        wanted: Mapping[str, Sequence[str]],
        quantized: Quantized,
        found: Callable[[str, str, float], None],
        advance: Advance = lambda cost, name: None,
    ) -> None:
        """The divergence with each (tensor, type) wanted, the rest of the model as it is; `found` is told as it goes.

        Tensors that the model does not use are left out.
        """
        self._prefix.restart()
        for name in self.in_order(wanted):
            self._prefix.move_to(self._position(name))
            for type in wanted[name]:
                with self._exchange.instead(self._own(name), type, quantized(name, type)):
                    found(name, type, self.kld())
                advance(self.cost(name), name)
        self._prefix.restart()

    def _position(self, name: str) -> int:
        """-1 for what the model does not use."""
        own = self._own(name)
        position = self._prefix.position(own) if own in self._exchange else None
        return -1 if position is None else position

    def _own(self, name: str) -> str:
        return name if self._names is None else self._names.get(name, "")
