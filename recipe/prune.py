"""Dropping layers: which tensors go, how the others are called, and every count in the metadata that changes.

llama-quantize drops and renames tensors and sets `<arch>.block_count`; the arrays with one value a layer keep their
old length and the file does not load (llama.cpp #27976). Here they are shortened, and the numbers that count layers
from the first or the last are corrected. A layer that does not exist is refused, where llama-quantize ignores it.
The remaining layers move up by the number of dropped layers before them; for every model whose layers are numbered
without gaps that is what llama-quantize does too (where there is an encoder beside a decoder, it mixes them up).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantmill.gguf_io.metadata import Metadata, MetaValue
from quantmill.recipe.errors import RecipeError

_BLOCK = re.compile(r"blk\.(\d+)\.")

# Numbers under `<arch>.` that count layers, from the first layer on or back from the last.
_FROM_FIRST = ("leading_dense_block_count", "hash_layer_count", "decoder_block_count")
_FROM_LAST = ("nextn_predict_layers", "attention.shared_kv_layers")
# Arrays under `<arch>.` that hold numbers of layers.
_LISTS_OF_LAYERS = ("ple.layers",)
# Arrays whose length has nothing to do with layers, even where it happens to be the same.
_NOT_PER_LAYER = ("rope.dimension_sections", "classifier.output_labels")
_NOT_PER_LAYER_GROUPS = ("adapters.", "ple.")
# Arrays with a number for each layer, and for those that predict further tokens even where the file has none.
_MAY_BE_LONGER = ("attention.compress_ratios",)
# Numbers that say "every n-th layer": pruning moves layers into other places of the rhythm.
_RHYTHMS = (
    *("attention.sliding_window_pattern", "full_attention_interval", "moe_every_n_layers"),
    *("interleave_moe_layer_step", "hrm.layers_per_stack"),
)
# llama-model.cpp, deepseek2: a model without q_lora_rank is one of these, or it is not loaded.
_LITE = (26, 27)
_OF_ALL_LAYERS = "per_layer_token_embd.weight"
_OF_ONE_LAYER = re.compile(r"^blk\.\d+\.ple_").match  # Qwen3.8-Flash-Next
_EXTRA_NAMES, _EXTRA_VALUES = "general.tensor_extra.name", "general.tensor_extra.prec_a4"


@dataclass(frozen=True)
class Pruning:
    """`renumbered`: old number → new number of the layers that stay. Empty when nothing is pruned."""

    dropped: tuple[int, ...]
    renumbered: Mapping[int, int]

    def new_name(self, name: str) -> str | None:
        """The tensor's name in the output; None when it is dropped."""
        match = _BLOCK.search(name) if self.dropped else None
        if match is None:
            return name
        new = self.renumbered.get(int(match.group(1)))
        return None if new is None else f"{name[: match.start(1)]}{new}{name[match.end(1) :]}"


def parse_layers(text: str) -> tuple[int, ...]:
    """`5,39` → (5, 39), sorted, each once. Raises RecipeError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise RecipeError(f"--prune-layers {text!r}: expected layer numbers, for example 5,39")
    return tuple(sorted({int(word) for word in words}))


def plan_pruning(layers: Iterable[int], names: Iterable[str]) -> Pruning:
    """Raises RecipeError for a layer that the model does not have, and when none would remain."""
    dropped = tuple(sorted(set(layers)))
    if not dropped:
        return Pruning((), {})
    names = tuple(names)
    if _OF_ALL_LAYERS in names:
        whose = (
            "tables of one layer, whose number stands elsewhere"
            if any(map(_OF_ONE_LAYER, names))
            else "a part for each layer"
        )
        raise RecipeError(
            f"--prune-layers: {_OF_ALL_LAYERS} holds {whose}; a model with it keeps all its layers"
        )
    present = sorted({int(match.group(1)) for name in names if (match := _BLOCK.search(name))})
    missing = [layer for layer in dropped if layer not in present]
    if missing:
        known = f"it has {present[0]} to {present[-1]}" if present else "it has none"
        raise RecipeError(f"--prune-layers: the model has no layer {', '.join(map(str, missing))} ({known})")
    kept = [layer for layer in present if layer not in dropped]
    if not kept:
        raise RecipeError("--prune-layers: no layer would remain")
    return Pruning(dropped, {layer: layer - sum(gone < layer for gone in dropped) for layer in kept})


def prune_metadata(metadata: Metadata, arch: str, pruning: Pruning) -> tuple[Metadata, list[str]]:
    """The metadata with every per-layer array and count corrected in its place, and warnings about the rest.

    `<arch>.block_count` itself is left to the caller (llama-quantize writes it as the last key).
    """
    if not pruning.dropped:
        return metadata, []
    n_layer = metadata.number(f"{arch}.block_count")
    n_nextn = metadata.number(f"{arch}.nextn_predict_layers")
    warnings = []
    left = n_layer - len(pruning.dropped)
    if arch == "deepseek2" and f"{arch}.attention.q_lora_rank" not in metadata and left not in _LITE:
        warnings.append(
            f"llama.cpp tells a DeepSeek V2 Lite by its {' or '.join(map(str, _LITE))} layers and will not load one of "
            f"{left}"
        )
    for key, found in metadata.items():
        short = key.removeprefix(f"{arch}.")
        new: MetaValue | None = None
        if key == _EXTRA_NAMES:
            metadata = _prune_extra(metadata, pruning)
        elif short == key and not key.startswith("xielu."):
            continue
        elif found.element_type is None:
            if short in _RHYTHMS and int(found.value) > 1:
                warnings.append(
                    f"{key} is {found.value}: every {found.value} layers repeat, and the layers behind a pruned "
                    "one change their place in this rhythm; measure the result"
                )
            new = _count(short, found, n_layer, pruning.dropped)
        elif short in _LISTS_OF_LAYERS:
            kept = [pruning.renumbered[layer] for layer in found.value if layer in pruning.renumbered]
            new = MetaValue(found.type, kept, found.element_type)
        elif _is_per_layer(short, len(found.value), n_layer, n_nextn):
            new = MetaValue(found.type, _without(found.value, pruning.dropped), found.element_type)
        if new is not None:
            metadata = metadata.replace(key, new)
    return metadata, warnings


def _count(key: str, found: MetaValue, n_layer: int, dropped: Sequence[int]) -> MetaValue | None:
    if key in _FROM_FIRST:
        gone = sum(layer < int(found.value) for layer in dropped)
    elif key in _FROM_LAST:
        gone = sum(layer >= n_layer - int(found.value) for layer in dropped)
    else:
        return None
    return MetaValue(found.type, int(found.value) - gone)


def _is_per_layer(key: str, length: int, n_layer: int, n_nextn: int) -> bool:
    if key in _NOT_PER_LAYER or key.startswith(_NOT_PER_LAYER_GROUPS):
        return False
    if key in _MAY_BE_LONGER and length >= n_layer:
        return True
    return length == n_layer or (n_nextn > 0 and length == n_layer - n_nextn)


def _without(values: Sequence[object], dropped: Sequence[int]) -> list[object]:
    return [value for i, value in enumerate(values) if i not in dropped]


def _prune_extra(metadata: Metadata, pruning: Pruning) -> Metadata:
    """Two arrays side by side, tensor names and a flag each: rename, and drop what is dropped."""
    names, flags = metadata[_EXTRA_NAMES], metadata.get(_EXTRA_VALUES)
    renamed = [pruning.new_name(name) for name in names.value]
    gone = [i for i, name in enumerate(renamed) if name is None]
    metadata = metadata.replace(
        _EXTRA_NAMES, MetaValue(names.type, _without(renamed, gone), names.element_type)
    )
    if flags is None:
        return metadata
    kept = MetaValue(flags.type, _without(flags.value, gone), flags.element_type)
    return metadata.replace(_EXTRA_VALUES, kept)
