"""The facts about a model that its mixtures depend on, read from metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import MetaValue
from quantmill.gguf_io.sensible import whole_number
from quantmill.recipe.errors import RecipeError
from quantmill.recipe.overrides import not_whole

# Architectures that count as "the 70B model" by their number of layers alone (src/models/*.cpp).
_70B_LAYERS = {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True)
class ModelFacts:
    """`n_layer` is `<arch>.block_count` of the input, also when layers are pruned; `gqa` is that of layer 0."""

    arch: str
    n_layer: int
    n_expert: int
    gqa: int
    is_70b: bool


def model_facts(metadata: Mapping[str, MetaValue], overrides: Mapping[str, MetaValue]) -> ModelFacts:
    """Read the facts as llama.cpp's loader does, `--override-kv` included (it overrides scalars, not arrays).

    Raises RecipeError when the architecture or the number of layers is missing.
    Source: src/llama-model.cpp: load_hparams; src/llama-hparams.cpp: n_gqa.
    """
    architecture = overrides.get("general.architecture", metadata.get("general.architecture"))
    if architecture is None or not isinstance(architecture.value, str):
        raise RecipeError("the model has no general.architecture: it does not say what it is")
    arch = architecture.value

    def number(key: str, default: int | None) -> int:
        full = f"{arch}.{key}"
        found = metadata.get(full)
        if found is not None and found.element_type is not None:  # one value a layer
            return whole_number(full, found.value[0]) if len(found.value) else 0
        if full in overrides:
            return _overridden(full, overrides[full].value)
        if found is not None:
            return whole_number(full, found.value)
        if default is None:
            raise RecipeError(f"the model has no {full}")
        return default

    # of encoders of images (the --mmproj file), which llama.cpp's loader asks for nothing
    n_layer = number("block_count", 0 if arch == "clip" else None)
    n_expert = number("expert_count", 0)
    n_head = number("attention.head_count", 0)
    n_head_kv = number("attention.head_count_kv", n_head)
    shown_layers = n_layer - number("nextn_predict_layers", 0)
    is_70b = _70B_LAYERS.get(arch) == shown_layers or (
        arch in ("llama", "llama-embed") and shown_layers == 80 and n_head != n_head_kv and n_expert != 8
    )
    return ModelFacts(arch, n_layer, n_expert, n_head // n_head_kv if n_head_kv else 0, is_70b)


def _overridden(key: str, value: Any) -> int:
    try:
        return whole_number(key, value)
    except GGUFError:
        raise not_whole(key, value) from None
