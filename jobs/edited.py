"""A model seen through the edits of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantmill.gguf_io import TensorSource
from quantmill.gguf_io.edited import EditedSource, Stored
from quantmill.gguf_io.edited import Edits as SourceEdits
from quantmill.gguf_io.metadata import Metadata, MetaValue
from quantmill.recipe.model import model_facts
from quantmill.recipe.prune import plan_pruning, prune_metadata
from quantmill.recipe.prune_experts import cut_metadata, cut_tensors, find_experts, routing_tables

if TYPE_CHECKING:
    from quantmill.jobs.edits import Edits


def edited(source: TensorSource, edits: Edits) -> EditedSource:
    metadata, kept, tables = _cut(source, edits)
    return EditedSource(source, metadata, SourceEdits({}, kept, {**tables, **edits.replaced}))


def pruned_model(source: TensorSource, edits: Edits, layers: tuple[int, ...]) -> EditedSource:
    """The model without `layers`, those behind them moved up: what is run to see what was lost."""
    metadata, kept, tables = _cut(source, edits)
    names = [spec.name for spec in source.specs()]
    pruning = plan_pruning(layers, names)
    if pruning.dropped:
        facts = model_facts(metadata, {})
        metadata, _ = prune_metadata(metadata, facts.arch, pruning)
        key = f"{facts.arch}.block_count"
        left = MetaValue(metadata[key].type, facts.n_layer - len(pruning.dropped))
        metadata = metadata.replace(key, left)
    renamed = {name: pruning.new_name(name) for name in names}
    return EditedSource(source, metadata, SourceEdits(renamed, kept, {**tables, **edits.replaced}))


def _cut(
    source: TensorSource, edits: Edits
) -> tuple[Metadata, dict[str, tuple[int, ...]], dict[str, Stored]]:
    if not edits.experts:
        return source.metadata, {}, {}
    from quantmill.jobs.cut_experts import remapped  # with numpy, which plans of whole models do without

    specs = source.specs()
    experts = find_experts(source.metadata, specs)
    kept = cut_tensors(specs, experts, edits.experts)
    n_kept = len(next(iter(edits.experts.values())))
    tables = {
        name: Stored("I32", remapped(source.read(name), edits.experts[layer], experts.n))
        for name, layer in routing_tables(specs).items()
    }
    return cut_metadata(source.metadata, n_kept), kept, tables
