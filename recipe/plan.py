"""build_plan: from the tensors and metadata of a model to what every tensor of the output will be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantmill.gguf_io import OutputTensor, TensorSpec, lay_out
from quantmill.gguf_io.metadata import Metadata
from quantmill.qkernels.types import TYPES, Search
from quantmill.recipe.errors import RecipeError
from quantmill.recipe.mixtures import Mixture
from quantmill.recipe.model import ModelFacts, model_facts
from quantmill.recipe.names import OUTPUT, TOKEN_EMBEDDINGS, V_LIKE, category, processing_order
from quantmill.recipe.output_metadata import output_metadata
from quantmill.recipe.presets import FILE_TYPES
from quantmill.recipe.prune import Pruning, plan_pruning
from quantmill.recipe.request import ImportanceIndex, Recipe
from quantmill.recipe.rules import TypeChooser, TypeOptions
from quantmill.recipe.unseen import Unseen

LOW_BIT = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})


@dataclass(frozen=True)
class PlanEntry:
    """One output tensor. `shape` in ggml order; `source` is its name in the input.

    `importance_name`: the entry that weighs its search; `fallback_from`: the type that its shape ruled out. `original`:
    its source type is the one it was published in.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    importance_name: str | None
    shard: int
    fallback_from: str | None = None
    original: bool = False

    @property
    def converted(self) -> bool:
        """Whether the bytes change; otherwise they are copied."""
        return self.type != self.source_type

    @property
    def n_cols(self) -> int:
        return self.shape[0]

    @property
    def n_matrices(self) -> int:
        """Experts of a stack of three dimensions, each with an importance vector of its own; 1 otherwise."""
        return math.prod(self.shape[2:])

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return TensorSpec(self.name, self.shape, self.type, 0, 0).n_bytes

    @property
    def source_bytes(self) -> int:
        return TensorSpec(self.name, self.shape, self.source_type, 0, 0).n_bytes


@dataclass(frozen=True)
class Plan:
    """The output before a byte of it exists. `file_bytes` is exact, keys and padding included (all files).

    `warnings`: what the user should know; `problems`: what makes a real run impossible, each naming its tensor.
    """

    recipe: Recipe
    entries: tuple[PlanEntry, ...]
    metadata: Metadata
    file_bytes: int
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def fallbacks(self) -> tuple[PlanEntry, ...]:
        """Tensors whose row length does not allow the type they should have had."""
        return tuple(entry for entry in self.entries if entry.fallback_from is not None)

    @property
    def bpw(self) -> float:
        """Bits per weight of all tensors of the output; keys and padding do not count."""
        return (
            8 * sum(entry.n_bytes for entry in self.entries) / sum(entry.n_weights for entry in self.entries)
        )

    @property
    def source_bpw(self) -> float:
        """The same of the tensors that were kept, as they were in the input."""
        weights = sum(entry.n_weights for entry in self.entries)
        return 8 * sum(entry.source_bytes for entry in self.entries) / weights

    def output_tensors(self) -> list[OutputTensor]:
        """For GGUFSink."""
        return [OutputTensor(entry.name, entry.shape, entry.type, entry.shard) for entry in self.entries]


@dataclass(frozen=True)
class _Kept:
    spec: TensorSpec
    name: str
    shard: int


def build_plan(
    specs: Sequence[TensorSpec],
    metadata: Metadata,
    recipe: Recipe,
    importance: ImportanceIndex | None = None,
) -> Plan:
    """Decide every tensor's type, name, place and importance, and the output's metadata.

    Raises RecipeError for a recipe that no run could follow: a layer that does not exist, a shape that no allowed
    type fits, a model that does not say what it is. What only a real run refuses is in `Plan.problems`.
    """
    if importance is not None and not importance.n_values:
        importance = None  # everything filtered out: the run is one without importance
    overrides = {override.key: override.value for override in recipe.overrides}
    facts = model_facts(metadata, overrides)
    pruning = plan_pruning(recipe.prune_layers, [spec.name for spec in specs])
    kept = _kept(specs, pruning, recipe.keep_split)
    chooser = _chooser(recipe, facts, kept, importance is not None)
    named = importance.n_values.keys() if importance and recipe.fallback else None
    unseen = Unseen(metadata, facts.arch, recipe.file_type, named)
    problems: list[str] = []
    entries = []
    for item in kept:
        choice = chooser.choose(item.name, item.spec.shape, item.spec.type)
        entry = PlanEntry(
            source=item.spec.name,
            name=item.name,
            shape=item.spec.shape,
            source_type=item.spec.type,
            type=unseen.type(item.spec.name, choice.type),
            importance_name=None,
            shard=item.shard,
            fallback_from=choice.substitute_for,
            original=item.spec.original,
        )
        if entry.converted:
            problems += _conversion_problems(entry, recipe)
            entry, found = _with_importance(entry, recipe.file_type, importance)
            problems += found
        entries.append(entry)
    written, warnings = output_metadata(metadata, recipe, facts, pruning, specs, importance)
    warnings += [
        *_recipe_warnings(recipe),
        *chooser.unused_rules(),
        *unseen.warnings(),
        *_missing_importance(entries, importance, recipe.search),
        *_searched_as_by_default(entries, recipe),
    ]
    plan = Plan(recipe, tuple(entries), written, 0, tuple(warnings), tuple(problems))
    layouts = lay_out(
        "model.gguf",
        written,
        plan.output_tensors(),
        keep_split=recipe.keep_split,
        split_max_bytes=recipe.split_max_bytes,
    )
    return replace(plan, file_bytes=sum(layout.file_bytes for layout in layouts))


def _kept(specs: Sequence[TensorSpec], pruning: Pruning, keep_split: bool) -> list[_Kept]:
    """The tensors that stay, in processing order, which is also the order in the file."""
    kept = []
    for spec in sorted(specs, key=lambda spec: processing_order(spec.name)):
        name = pruning.new_name(spec.name)
        if name is not None:
            kept.append(_Kept(spec, name, 0))
    if not kept:
        raise RecipeError("the model has no tensors")
    if not keep_split:
        return kept
    kept.sort(key=lambda item: (item.spec.shard, item.spec.offset))
    # A shard that pruning emptied does not come back; the first one stays, for it holds the metadata.
    shards = sorted({0, *(item.spec.shard for item in kept)})
    return [_Kept(item.spec, item.name, shards.index(item.spec.shard)) for item in kept]


def _chooser(recipe: Recipe, facts: ModelFacts, kept: Sequence[_Kept], importance: bool) -> TypeChooser:
    file_type = FILE_TYPES.get(recipe.file_type)
    options = TypeOptions(
        base=None if file_type is None else file_type.base,
        rules=recipe.rules,
        token_embedding_type=recipe.token_embedding_type,
        output_tensor_type=recipe.output_tensor_type,
        leave_output_tensor=recipe.leave_output_tensor,
        pure=recipe.pure,
        fallback=recipe.fallback,
    )
    if file_type is None:
        return TypeChooser(options, facts.arch, None)
    n_value = sum(category(item.name) in V_LIKE for item in kept)
    tied = all(item.name != OUTPUT for item in kept)
    return TypeChooser(options, facts.arch, Mixture(recipe.file_type, facts, n_value, tied, importance))


def _conversion_problems(entry: PlanEntry, recipe: Recipe) -> list[str]:
    if entry.source_type not in TYPES:
        return [f"{entry.name}: holds {entry.source_type}, which cannot be converted to {entry.type}"]
    quantized = TYPES[entry.source_type].family != "plain"
    if quantized and not (entry.original or recipe.allow_requantize):
        return [
            f"{entry.name}: is already quantized to {entry.source_type}, and converting it to {entry.type} loses "
            "quality twice; start from an F16, BF16 or F32 model, or insist with --allow-requantize"
        ]
    return []


def _with_importance(
    entry: PlanEntry, file_type: str, importance: ImportanceIndex | None
) -> tuple[PlanEntry, list[str]]:
    """The entry with its importance, and what is wrong with that.

    llama-quantize looks importance up under the original name, lets a token embedding's that does not fit pass,
    and finds a missing mandatory one only when it comes to the tensor.
    Source: src/llama-quant.cpp: tensor_requires_imatrix, llama_model_quantize_impl.
    """
    needed = entry.n_cols * entry.n_matrices
    found = None if importance is None else importance.n_values.get(entry.source)
    if importance is not None and found == needed:
        return replace(entry, importance_name=entry.source), []
    if importance is not None and found is not None and entry.name not in TOKEN_EMBEDDINGS:
        return entry, [
            f"{entry.name}: {importance.file} holds {found} values for it, {needed} are needed ({entry.n_cols} columns"
            f"{f' x {entry.n_matrices} experts' if entry.n_matrices > 1 else ''}); was it collected from this model?"
        ]
    exempt = entry.name in TOKEN_EMBEDDINGS or entry.name == OUTPUT
    low_bit = entry.type in LOW_BIT or (entry.type == "Q2_K" and file_type == "Q2_K_S")
    if (low_bit and not exempt) or TYPES[entry.type].importance == "required":
        without = "no importance matrix was given (--imatrix)"
        if importance is not None:
            without = f"{importance.file} has no entry for it"
        return entry, [
            f"{entry.name}: {entry.type} needs importance and {without}; collect one with 'quantmill imatrix', or "
            "choose another type for this tensor"
        ]
    return entry, []


def _recipe_warnings(recipe: Recipe) -> list[str]:
    return [
        f"--tensor-type {rule}: patterns are lower-cased, which turns {' and '.join(rule.inverted)} into the opposite"
        for rule in recipe.rules
        if rule.inverted
    ]


def _searched_as_by_default(entries: Sequence[PlanEntry], recipe: Recipe) -> list[str]:
    """What a thorough search was asked of in vain, by type."""
    if recipe.search == "default":
        return []
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.converted and TYPES[entry.type].optimal and entry.importance_name is None:
            found.setdefault(entry.type, []).append(entry.name)
    return [
        f"--search {recipe.search}: for {type} without importance the default's search is the best there is: "
        f"{names[0]}{_and_more(names)}"
        for type, names in found.items()
    ]


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _missing_importance(
    entries: Sequence[PlanEntry], importance: ImportanceIndex | None, search: Search
) -> list[str]:
    """Embeddings and output are never collected by default; anything else without an entry is worth a word."""
    if importance is None:
        return []
    missing = [
        entry.name
        for entry in entries
        if entry.converted
        and entry.importance_name is None
        and TYPES[entry.type].reads_importance(search)
        and entry.name not in (*TOKEN_EMBEDDINGS, OUTPUT)
    ]
    if not missing:
        return []
    return [
        f"{importance.file} has no entry for {missing[0]}{_and_more(missing)}: quantized without importance"
    ]
