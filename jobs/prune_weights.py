"""Experts dropped without a text, by their weights alone: nothing is run, so torch may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantmill.calibrate.prune_aimer import aimer
from quantmill.gguf_io import TensorSource, open_source
from quantmill.jobs.edits import Edits
from quantmill.jobs.prune_facts import facts_of_weights
from quantmill.jobs.quantize import Job
from quantmill.recipe.prune_experts import Experts, Share, find_experts, least_salient

Scores = Mapping[int, Sequence[float]]  # layer → saliency of its experts, larger is kept


def apply_without_text(job: Job, share: Share) -> Job:
    """The quantization of the model without its least experts. Raises RecipeError for what leaves no model."""
    edits, experts = without_text(job.source, share)
    overrides = (*job.recipe.overrides, *facts_of_weights(edits.gone(experts.n), experts.n))
    return replace(job, edits=edits, recipe=replace(job.recipe, overrides=overrides))


def without_text(model: str, share: Share) -> tuple[Edits, Experts]:
    """Experts chosen by their weights alone (AIMER). Raises RecipeError, GGUFError, OSError."""
    source = open_source(model)
    try:
        experts = find_experts(source.metadata, source.specs())
        n = share.of(experts)
        return kept_by(by_weights(source, experts), n, experts), experts
    finally:
        source.close()


def by_weights(source: TensorSource, experts: Experts) -> Scores:
    return {layer: (-found).tolist() for layer, found in aimer(source, experts.n).items()}


def kept_by(scores: Scores, n: int, experts: Experts) -> Edits:
    return Edits({layer: least_salient(found, n, experts) for layer, found in scores.items()})
