"""The metadata of the output: the input's, plus what llama-quantize adds, in its order.

Source: src/llama-quant.cpp: llama_model_quantize_impl; tools/quantize/quantize.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from quantmill.gguf_io import TensorSpec
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.recipe.model import ModelFacts
from quantmill.recipe.names import processing_order
from quantmill.recipe.overrides import require_readable
from quantmill.recipe.presets import COPY, FILE_TYPE_OF_TENSOR_TYPE, FILE_TYPES, GUESSED_FLAG
from quantmill.recipe.prune import Pruning, prune_metadata
from quantmill.recipe.request import ImportanceIndex, Recipe

QUANTIZATION_VERSION = 2  # ggml.h: GGML_QNT_VERSION
_MAX_STRING = 127  # bytes that llama-quantize keeps of the importance file's name and data set


def output_metadata(
    metadata: Metadata,
    recipe: Recipe,
    facts: ModelFacts,
    pruning: Pruning,
    specs: Sequence[TensorSpec],
    importance: ImportanceIndex | None,
) -> tuple[Metadata, list[str]]:
    """Keys of the first shard in their order; then, each moved to the end: version, file type, overrides,
    importance, search if it is not llama.cpp's, block count. Also gives warnings. The keys split.* belong to the sink
    (gguf_io.lay_out). Raises RecipeError for an override that no program would read.

    Unlike llama-quantize, keeps strings with a NUL byte whole.
    """
    written, warnings = prune_metadata(metadata, facts.arch, pruning)
    u32 = GGUFValueType.UINT32
    written = written.set("general.quantization_version", MetaValue(u32, QUANTIZATION_VERSION))
    written = written.set("general.file_type", MetaValue(u32, _file_type_number(recipe, metadata, specs)))
    held = written
    for override in recipe.overrides:
        require_readable(override, held.get(override.key), facts.arch)
        written = written.set(override.key, override.value)
        if override.given.startswith("-") and override.value.type == u32:
            warnings.append(
                f"--override-kv {override.key}: {override.given} is stored as {override.value.value}"
            )
    if importance is not None:
        text = GGUFValueType.STRING
        written = written.set("quantize.imatrix.file", MetaValue(text, _cut(importance.file)))
        if importance.datasets:
            written = written.set("quantize.imatrix.dataset", MetaValue(text, _cut(importance.datasets[0])))
        written = written.set("quantize.imatrix.entries_count", MetaValue(u32, len(importance.n_values)))
        if importance.chunk_count > 0:
            written = written.set("quantize.imatrix.chunks_count", MetaValue(u32, importance.chunk_count))
    if recipe.search != "default":
        written = written.set("quantmill.search", MetaValue(GGUFValueType.STRING, recipe.search))
    if pruning.dropped:
        left = facts.n_layer - len(pruning.dropped)
        written = written.set(f"{facts.arch}.block_count", MetaValue(u32, left))
    return written, warnings


def _file_type_number(recipe: Recipe, metadata: Metadata, specs: Sequence[TensorSpec]) -> int:
    """COPY keeps the input's number, or guesses it from the most frequent type as llama.cpp's loader does."""
    if recipe.file_type != COPY:
        return FILE_TYPES[recipe.file_type].id
    if "general.file_type" in metadata:
        return metadata.number("general.file_type")
    counts: Counter[str] = Counter()
    most = "F32"
    for spec in sorted(specs, key=lambda spec: processing_order(spec.name)):
        counts[spec.type] += 1
        if counts[spec.type] > counts[most]:
            most = spec.type
    return FILE_TYPE_OF_TENSOR_TYPE.get(most, 0) | GUESSED_FLAG


def _cut(text: str) -> str:
    return text.encode(errors="surrogateescape")[:_MAX_STRING].decode(errors="surrogateescape")
