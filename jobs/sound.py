"""Whether all weights of a model are numbers: asked before work that would come to the one that is not after hours."""

from __future__ import annotations

from quantmill.gguf_io import TensorSource
from quantmill.jobs.line import require_sound_rows
from quantmill.jobs.quantize_request import DEFAULT_BUFFER_BYTES
from quantmill.recipe import Plan
from quantmill.recipe.slabs import slabs


def require_sound_weights(source: TensorSource, plan: Plan) -> None:
    """Reads every tensor of the plan once that the model has. Raises JobError naming tensor, row and column."""
    there = {spec.name for spec in source.specs()}
    entries = [entry for entry in plan.entries if entry.source in there]
    for slab in slabs([entries], DEFAULT_BUFFER_BYTES):
        require_sound_rows(slab, source.read(slab.source, slab.first_row, slab.n_rows))
        source.release(slab.source, slab.first_row, slab.n_rows)
