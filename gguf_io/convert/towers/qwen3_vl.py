"""What sees in Qwen3-VL and Qwen 3.5, dense or with experts, and in Qwen3.8-Flash-Next."""

from __future__ import annotations

from collections.abc import Iterable

from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    DEEP,
    SIZES,
    USE_GELU,
    Tensor,
    Tower,
    linear,
    linear_of_layers,
    positions,
    projector_type,
    two_images,
)
from quantmill.gguf_io.errors import GGUFError


def _deep_layers(config: Config) -> Iterable[tuple[int, int]]:
    return enumerate(_deep(config))


def _deep(config: Config) -> list[int]:
    """Which layers give something to the text part beside the last."""
    found = config[DEEP]
    layers = range(config["num_hidden_layers"])
    if not (isinstance(found, list) and all(type(one) is int and one in layers for one in found)):
        raise GGUFError(f"config.json: {DEEP} is {found!r}; the encoder has {len(layers)} layers, from 0 on")
    return found


MERGED = "hidden_size*spatial_merge_size*spatial_merge_size"

LAYERS = linear_of_layers(
    ("blocks.{}.norm1", "v.blk.{}.ln1", "hidden_size"),
    ("blocks.{}.norm2", "v.blk.{}.ln2", "hidden_size"),
    ("blocks.{}.attn.qkv", "v.blk.{}.attn_qkv", "3*hidden_size hidden_size"),
    ("blocks.{}.attn.proj", "v.blk.{}.attn_out", "hidden_size hidden_size"),
    ("blocks.{}.mlp.linear_fc1", "v.blk.{}.ffn_up", "intermediate_size hidden_size"),
    ("blocks.{}.mlp.linear_fc2", "v.blk.{}.ffn_down", "hidden_size intermediate_size"),
)
SEES = Tower(
    classes=(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen4ExpForConditionalGeneration",
    ),
    prefix=r"(?:model\.)?visual\.",
    tensors=(
        *two_images("patch_embed.proj.weight", "in_channels"),
        Tensor("patch_embed.proj.bias", "v.patch_embd.bias", "hidden_size"),
        positions("pos_embed.weight", "num_position_embeddings hidden_size"),
        *LAYERS,
        *linear("merger.norm", "v.post_ln", "hidden_size"),
        *linear("merger.linear_fc1", "mm.0", f"{MERGED} {MERGED}"),
        *linear("merger.linear_fc2", "mm.2", f"text_size {MERGED}"),
        *linear("deepstack_merger_list.{}.norm", "v.deepstack.{}.norm", MERGED, _deep_layers),
        *linear(
            "deepstack_merger_list.{}.linear_fc1",
            "v.deepstack.{}.fc1",
            f"{MERGED} {MERGED}",
            _deep_layers,
        ),
        *linear(
            "deepstack_merger_list.{}.linear_fc2", "v.deepstack.{}.fc2", f"text_size {MERGED}", _deep_layers
        ),
    ),
    keys=(
        *SIZES,
        projector_type("qwen3vl_merger"),
        USE_GELU,
        Key("spatial_merge_size", "vision.spatial_merge_size"),
        Key("text_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        written(
            "vision.is_deepstack_layers",
            lambda config: [layer in _deep(config) for layer in range(config["num_hidden_layers"])],
            ARRAY,
        ),
    ),
    defaults={
        DEEP: lambda config: [8, 16, 24] if str(config["model_type"]).startswith("qwen3_vl") else [],
        "depth": 27,
        "hidden_size": 1152,
        "in_channels": 3,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "num_hidden_layers": lambda config: config["depth"],
        "num_attention_heads": lambda config: config["num_heads"],
        "image_size": lambda config: int(config["num_position_embeddings"] ** 0.5 * config["patch_size"]),
    },
)

TOWERS = (SEES,)
