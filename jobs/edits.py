"""What pruning changes of a model before anything else is done with it: experts cut, matrices refitted.

A job that has edits reads its model through them (`open_model`); layers are left out by the recipe, because an
importance matrix names tensors as they were. To run the pruned model, `pruned_model` leaves them out as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from quantmill.gguf_io import TensorSource, open_source
from quantmill.gguf_io.edited import EditedSource, Stored
from quantmill.gguf_io.edited import Edits as SourceEdits
from quantmill.gguf_io.metadata import Metadata, MetaValue
from quantmill.recipe.model import model_facts
from quantmill.recipe.prune import plan_pruning, prune_metadata
from quantmill.recipe.prune_experts import cut_metadata, cut_tensors, find_experts, routing_tables


@dataclass(frozen=True, eq=False)
class Edits:
    """experts: layer → numbers of its experts that stay. replaced: tensor (as named in the source) → what stands for it
    now, of the experts that stay."""

    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    replaced: Mapping[str, Stored] = field(default_factory=dict)

    def gone(self, n_experts: int) -> dict[int, tuple[int, ...]]:
        """Layer → numbers of its experts that leave, of n_experts."""
        return {
            layer: tuple(expert for expert in range(n_experts) if expert not in kept)
            for layer, kept in self.experts.items()
        }

    @property
    def digest(self) -> str:
        """A hash of all they change."""
        found = hashlib.sha256(repr(sorted(self.experts.items())).encode())
        for name, stored in sorted(self.replaced.items()):
            found.update(f"{name} {stored.type}".encode())
            found.update(stored.rows.tobytes())
        return found.hexdigest()


NO_EDITS = Edits()


def open_model(path: str, edits: Edits = NO_EDITS, later: str = "with") -> TensorSource:
    """The model of a job, edited. Raises as open_source does; RecipeError for experts that cannot be cut."""
    source = open_source(path, later)
    return source if edits is NO_EDITS else edited(source, edits)


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
