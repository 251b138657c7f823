"""What a model loses by leaving layers out: the divergence from its own predictions, measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from quantmill.measure.divergence import TokenScores
from quantmill.measure.perplexity import perplexity
from quantmill.measure.token_scores import compare
from quantmill.models.model import LoadedModel
from quantmill.models.prefix import Prefix, ShareOut
from quantmill.models.scoring import targets

HEAD = 4  # what embeddings, head and comparison cost, in layers


def mean_damage(scores: TokenScores) -> tuple[float, float]:
    """Mean KL divergence in nats a token, and perplexity."""
    return float(scores.kld.mean()), perplexity(scores.nll).value


class Predictions:
    """What the original says of the second half of every chunk [n_chunk, n_ctx] i32, in memory as log p."""

    def __init__(self, prefix: Prefix, chunks: np.ndarray) -> None:
        self.log_p = prefix.map(lambda batch, logits: torch.log_softmax(logits, dim=-1))
        wanted = torch.from_numpy(targets(chunks).astype(np.int64))
        self.targets = wanted.split([len(found) for found in self.log_p])

    @property
    def nll(self) -> np.ndarray:
        """−log p of the scored tokens, f64 [n]."""
        pairs = zip(self.log_p, self.targets, strict=True)
        found = [-log_p.gather(-1, wanted[..., None].to(log_p.device)) for log_p, wanted in pairs]
        return torch.cat([part.flatten() for part in found]).double().cpu().numpy()

    def scores(self, prefix: Prefix) -> TokenScores:
        """Of another model, or of one without some of its layers, over the same chunks."""

        def one(batch: int, logits: torch.Tensor) -> TokenScores:
            wanted = self.targets[batch].flatten().to(logits.device)
            return compare(self.log_p[batch].flatten(0, 1), logits.flatten(0, 1), wanted)

        return TokenScores.joined(prefix.map(one))


def scored_prefix(loaded: LoadedModel, chunks: np.ndarray, share_out: ShareOut) -> Prefix:
    """Of a model over chunks whose second half is scored, as llama-perplexity does."""
    return Prefix(loaded, chunks, chunks.shape[1] // 2, share_out)


class Damage:
    """Measures what it costs to leave sets of layers out. A set runs from its first layer on; what lies before is run
    once for all sets: in memory are one layer's hidden states of the whole text."""

    def __init__(
        self,
        loaded: LoadedModel,
        chunks: np.ndarray,
        share_out: ShareOut,
        original: Predictions | None = None,
    ) -> None:
        """original: of another model, that the divergence is from; None: the model's own."""
        self.prefix = scored_prefix(loaded, chunks, share_out)
        self.predictions = original or Predictions(self.prefix, chunks)

    def cost(self, layers: Sequence[int]) -> int:
        """How long it takes to measure a set, in layers."""
        return self.prefix.n_layers - min(layers) + HEAD

    def measure(self, sets: Iterable[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], TokenScores]]:
        """The scores without each set of layers, by the first of them."""
        for layers in sorted(set(sets)):
            if layers[0] < self.prefix.at:
                self.prefix.restart()
            self.prefix.move_to(layers[0])
            with self.prefix.without(layers):
                scores = self.predictions.scores(self.prefix)
            yield layers, scores
