"""Experts dropped without a text, by their weights alone: nothing is run, so nothing loads torch's models."""

from __future__ import annotations

from dataclasses import replace

from quantmill.jobs.prune_choice import without_text
from quantmill.jobs.prune_facts import facts_of_weights
from quantmill.jobs.quantize import Job
from quantmill.recipe.prune_experts import Share


def apply_without_text(job: Job, share: Share) -> Job:
    """The quantization of the model without its least experts. Raises RecipeError for what leaves no model."""
    edits, experts = without_text(job.source, share)
    gone = {
        layer: tuple(expert for expert in range(experts.n) if expert not in kept)
        for layer, kept in edits.experts.items()
    }
    overrides = (*job.recipe.overrides, *facts_of_weights(gone, experts.n))
    return replace(job, edits=edits, recipe=replace(job.recipe, overrides=overrides))
