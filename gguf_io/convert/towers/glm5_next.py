"""What sees in GLM-5.3-Flash: gated layers with norms of heads, of which every few patches become one position."""

from __future__ import annotations

from collections.abc import Callable

from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    COLOURS,
    SIZES,
    Tensor,
    Tower,
    f16_where_asked,
    linear,
    linear_of_layers,
    of_all_layers,
    projector_type,
    two_images,
)
from quantmill.gguf_io.errors import GGUFError


def _has(activation: str) -> Callable[[Config], bool | None]:
    return lambda config: True if str(config["hidden_act"]).lower() == activation else None


def _pixels(key: str) -> Callable[[Config], int]:
    """What a number of positions comes to: llama.cpp takes no image without the two."""

    def number(config: Config) -> int:
        found = config.get(f"prepared_{key}")
        if type(found) is not int or found < 1:
            raise GGUFError(
                f"preprocessor_config.json: {key} must be a positive whole number, not {found!r}; fetch the file again"
            )
        side = config["prepared_patch_size"] * config["prepared_merge_size"]
        return int(found * side**2)

    return number


SEES = Tower(
    classes=("Glm5NextForConditionalGeneration",),
    prefix=r"(?:model\.)?visual\.",
    tensors=(
        *two_images("patch_embed.proj.weight", "in_channels"),
        Tensor("patch_embed.proj.bias", "v.patch_embd.bias", "hidden_size"),
        *(
            Tensor(f"blocks.{{}}.{here}.weight", f"v.blk.{{}}.{there}.weight", shape, of_all_layers)
            for here, there, shape in (
                ("norm1", "ln1", "hidden_size"),
                ("norm2", "ln2", "hidden_size"),
                ("attn.q_norm", "attn_q_norm", "head_dim"),
                ("attn.k_norm", "attn_k_norm", "head_dim"),
            )
        ),
        *linear_of_layers(
            ("blocks.{}.attn.qkv", "v.blk.{}.attn_qkv", "3*hidden_size hidden_size"),
            ("blocks.{}.attn.proj", "v.blk.{}.attn_out", "hidden_size hidden_size"),
            ("blocks.{}.mlp.gate_proj", "v.blk.{}.ffn_gate", "intermediate_size hidden_size"),
            ("blocks.{}.mlp.up_proj", "v.blk.{}.ffn_up", "intermediate_size hidden_size"),
            ("blocks.{}.mlp.down_proj", "v.blk.{}.ffn_down", "hidden_size intermediate_size"),
        ),
        Tensor("post_layernorm.weight", "v.post_ln.weight", "hidden_size"),
        Tensor(
            "downsample.weight",
            "mm.patch_merger.weight",
            "out_hidden_size hidden_size spatial_merge_size spatial_merge_size",
            type=f16_where_asked,
        ),
        Tensor("downsample.bias", "mm.patch_merger.bias", "out_hidden_size"),
        Tensor("merger.proj.weight", "mm.model.fc.weight", "out_hidden_size out_hidden_size"),
        *linear("merger.post_projection_norm", "mm.post_norm", "out_hidden_size"),
        Tensor("merger.gate_proj.weight", "mm.gate.weight", "projection_intermediate_size out_hidden_size"),
        Tensor("merger.up_proj.weight", "mm.up.weight", "projection_intermediate_size out_hidden_size"),
        Tensor("merger.down_proj.weight", "mm.down.weight", "out_hidden_size projection_intermediate_size"),
    ),
    keys=(
        *SIZES,
        projector_type("glm5v"),
        written("use_gelu", _has("gelu"), BOOL),
        written("use_silu", _has("silu"), BOOL),
        Key("rms_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        Key("spatial_merge_size", "vision.spatial_merge_size"),
        Key("swiglu_limit", "vision.swiglu_clamp", FLOAT32),
        written("vision.image_min_pixels", _pixels("min_image_tokens")),
        written("vision.image_max_pixels", _pixels("max_image_tokens")),
    ),
    prepared=(*COLOURS, "patch_size", "merge_size", "min_image_tokens", "max_image_tokens"),
    only={"attention_bias": True},
    defaults={
        "depth": 24,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "image_size": 336,
        "in_channels": 3,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 1536,
        "patch_size": 14,
        "prepared_merge_size": 2,
        "prepared_patch_size": 14,
        "projection_intermediate_size": 10240,
        "rms_norm_eps": 1e-5,
        "spatial_merge_size": 2,
        "swiglu_limit": 10.0,
        "num_hidden_layers": lambda config: config["depth"],
        "num_attention_heads": lambda config: config["num_heads"],
        "head_dim": lambda config: config["hidden_size"] // config["num_attention_heads"],
    },
)

TOWERS = (SEES,)
