"""A heuristic: which layers of each kind the statistics call important, as --tensor-type lines.

Within a kind, layers are ranked twice: by Σ(Act²) (much signal goes in, so an error costs much) and by
1 − CosSim (the layer sees something new). The mean of both ranks orders them. Nothing is measured on the model's
output; layer choices of this sort have been reported to lie within the noise of perplexity, so compare the
result with `quantmill evaluate` before keeping it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantmill.imatrix.statistics import TensorStatistics

# Routers and small helpers are never quantized, and the output head has options of its own.
KINDS = ("attn_", "ffn_")
NEVER = ("ffn_gate_inp", "_norm")


@dataclass(frozen=True)
class Suggestion:
    """One kind of tensor: layers to give more bits, layers to give fewer, most telling first."""

    kind: str
    more: tuple[int, ...]
    fewer: tuple[int, ...]

    def lines(self, more_type: str, fewer_type: str) -> list[str]:
        """Ready patterns for --tensor-type or a --tensor-type-file."""
        return [
            f"blk\\.({'|'.join(str(layer) for layer in sorted(layers))})\\.{self.kind}\\.weight={type}"
            for layers, type in ((self.more, more_type.lower()), (self.fewer, fewer_type.lower()))
            if layers
        ]


def suggest(rows: Sequence[TensorStatistics], share: float = 0.25) -> list[Suggestion]:
    """For every kind that occurs in at least four layers: the top and bottom `share` of its layers."""
    by_kind: dict[str, list[TensorStatistics]] = {}
    for row in rows:
        wanted = row.kind.startswith(KINDS) and not any(part in row.kind for part in NEVER)
        if wanted and row.layer_number is not None:
            by_kind.setdefault(row.kind, []).append(row)
    return [_suggestion(kind, of_kind, share) for kind, of_kind in by_kind.items() if len(of_kind) >= 4]


def _suggestion(kind: str, rows: list[TensorStatistics], share: float) -> Suggestion:
    by_total = {row.name: rank for rank, row in enumerate(sorted(rows, key=lambda row: row.total))}
    # a first layer has no predecessor to resemble: its CosSim of 0 says nothing, so it takes the middle rank
    known = sorted((row for row in rows if row.cossim), key=lambda row: -row.cossim)
    by_novelty = {row.name: rank for rank, row in enumerate(known)}
    middle = (len(rows) - 1) / 2
    scores = {row.name: by_total[row.name] + by_novelty.get(row.name, middle) for row in rows}
    ordered = sorted(rows, key=lambda row: (-scores[row.name], row.layer_number))
    layers = [row.layer_number for row in ordered if row.layer_number is not None]
    n = max(1, round(share * len(layers)))
    return Suggestion(kind, tuple(layers[:n]), tuple(reversed(layers[-n:])))
