"""Which experts leave: the criteria of the field, each tried on the text, and the best kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantmill.calibrate.prune_aimer import aimer
from quantmill.jobs.edits import Edits
from quantmill.jobs.prune_request import ExpertRow
from quantmill.jobs.prune_session import Session
from quantmill.jobs.prune_weights import Scores, by_weights, kept_by
from quantmill.measure.damage import mean_damage, scored_prefix
from quantmill.recipe.prune_experts import Share, expert_layers, find_experts


class ExpertChoice:
    """Criteria of a model's experts, measured on the chunks that candidates are compared on."""

    def __init__(self, session: Session, share: Share) -> None:
        self._session = session
        specs = session.source.specs()
        self.experts = find_experts(session.source.metadata, specs)
        self.n_gone = share.of(self.experts)
        self._weights = by_weights(session.source, self.experts)
        self._layers = expert_layers(specs)

    def criteria(self) -> dict[str, Scores]:
        """Name → scores: REAP's saliency; that times the tokens, what an expert adds in all; tokens; weights.

        Layers that no text passes (for predicting several tokens) go by their weights.
        """
        found = self._session.influence
        saliency, routed = found.saliency, found.routed
        return {
            "REAP": self._whole(saliency),
            "strength": self._whole({layer: saliency[layer] * routed[layer] for layer in saliency}),
            "count": self._whole(routed),
            "AIMER": self._weights,
        }

    def _whole(self, found: Mapping[int, np.ndarray]) -> Scores:
        return {
            layer: found[layer].tolist() if layer in found else self._weights[layer] for layer in self._layers
        }

    def best(self) -> tuple[str, Edits]:
        """The criterion that was asked for, or the one whose choice loses least, and the choice."""
        asked = self._session.request.criterion
        if asked != "best":
            return asked, kept_by(self.criteria()[asked], self.n_gone, self.experts)
        choices = {
            name: kept_by(scores, self.n_gone, self.experts) for name, scores in self.criteria().items()
        }
        measured = {name: self._measured(edits, name) for name, edits in choices.items()}
        name = min(measured, key=lambda one: float(f"{measured[one]:.4g}"))
        found = ", ".join(f"{one} {kld:.4f}" for one, kld in measured.items())
        self._session.watcher.note(f"experts chosen by {name}; KL divergence by {found}")
        return name, choices[name]

    def _measured(self, edits: Edits, what: str) -> float:
        session = self._session
        known = session.known((), edits)
        if known is not None:
            return known[0]
        wanted = session.compared
        session.watcher.began(f"experts by {what}", len(session.choosing), "chunks")
        prefix = scored_prefix(session.pruned(edits), session.choosing, session.workers.map)
        scores = wanted.scores(prefix)
        session.watcher.progressed(len(session.choosing))
        kld, ppl = mean_damage(scores)
        session.keep((), kld, ppl, edits)
        return kld


def expert_rows(session: Session) -> tuple[ExpertRow, ...]:
    """All experts of a model with what is known of them; none where it has none."""
    metadata = session.source.metadata
    if not metadata.value(f"{metadata.value('general.architecture')}.expert_count", 0):
        return ()
    experts = find_experts(metadata, session.source.specs())
    influence, weights = session.influence, aimer(session.source, experts.n)
    rows = []
    for layer, found in weights.items():
        saliency, routed = influence.saliency.get(layer), influence.routed.get(layer)
        for expert in range(experts.n):
            rows.append(
                ExpertRow(
                    layer,
                    expert,
                    None if saliency is None else float(saliency[expert]),
                    None if routed is None else int(routed[expert]),
                    float(found[expert]),
                )
            )
    return tuple(rows)
