"""What sees in a multimodal model, by kind: tensors and settings of the encoder of images and of its projector.

A row here is what a family is for the text part: which tensors there are, what they are called in either world, and
which keys llama.cpp's converter writes (`conversion/*.py: MmprojModel`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from quantmill.gguf_io.convert import gemma4_tower
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    DEEP,
    SIZES,
    USE_GELU,
    Tensor,
    Tower,
    always_f16,
    always_f32,
    f16_where_asked,
    linear,
    linear_of_layers,
    projector_type,
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


def _scale_of_gemma(config: Config) -> int | None:
    """How many patches become one position, per side; llama.cpp takes 4 where it is not said."""
    n_per_side = math.isqrt(config["image_seq_length"])
    scale = config["image_size"] // config["patch_size"] // n_per_side
    return scale if scale > 0 and scale != 4 else None


GEMMA_3 = Tower(
    classes=("Gemma3ForConditionalGeneration",),
    prefix=r"(?:model\.)?(?:vision_tower\.(?:vision_model\.)?|(?=multi_modal_projector\.))",
    left_out=r"head\.",
    tensors=(
        Tensor(
            "embeddings.patch_embedding.weight",
            "v.patch_embd.weight",
            "hidden_size num_channels patch_size patch_size",
            type=always_f32,
        ),
        Tensor("embeddings.patch_embedding.bias", "v.patch_embd.bias", "hidden_size"),
        Tensor(
            "embeddings.position_embedding.weight",
            "v.position_embd.weight",
            "n_patches hidden_size",
            type=always_f32,
        ),
        *linear_of_layers(
            ("encoder.layers.{}.layer_norm1", "v.blk.{}.ln1", "hidden_size"),
            ("encoder.layers.{}.layer_norm2", "v.blk.{}.ln2", "hidden_size"),
            ("encoder.layers.{}.self_attn.q_proj", "v.blk.{}.attn_q", "hidden_size hidden_size"),
            ("encoder.layers.{}.self_attn.k_proj", "v.blk.{}.attn_k", "hidden_size hidden_size"),
            ("encoder.layers.{}.self_attn.v_proj", "v.blk.{}.attn_v", "hidden_size hidden_size"),
            ("encoder.layers.{}.self_attn.out_proj", "v.blk.{}.attn_out", "hidden_size hidden_size"),
            ("encoder.layers.{}.mlp.fc1", "v.blk.{}.ffn_up", "intermediate_size hidden_size"),
            ("encoder.layers.{}.mlp.fc2", "v.blk.{}.ffn_down", "hidden_size intermediate_size"),
        ),
        *linear("post_layernorm", "v.post_ln", "hidden_size"),
        Tensor(
            "multi_modal_projector.mm_input_projection_weight",
            "mm.input_projection.weight",
            "hidden_size text_size",
            type=always_f16,
        ),
        Tensor(
            "multi_modal_projector.mm_soft_emb_norm.weight",
            "mm.soft_emb_norm.weight",
            "hidden_size",
            plus=1.0,
        ),
    ),
    keys=(
        *SIZES,
        projector_type("gemma3"),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        USE_GELU,
        written("vision.projector.scale_factor", _scale_of_gemma),
    ),
    defaults={
        "hidden_size": 768,
        "image_seq_length": 256,
        "image_size": 224,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": 12,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "patch_size": 16,
        "n_patches": lambda config: (config["image_size"] // config["patch_size"]) ** 2,
    },
)

_PATCHES = "hidden_size in_channels 2 patch_size patch_size"
_MERGED = "hidden_size*spatial_merge_size*spatial_merge_size"

QWEN_3_VL = Tower(
    classes=(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    ),
    prefix=r"(?:model\.)?visual\.",
    tensors=(
        Tensor("patch_embed.proj.weight", "v.patch_embd.weight", _PATCHES, type=f16_where_asked, plane=0),
        Tensor("patch_embed.proj.weight", "v.patch_embd.weight.1", _PATCHES, type=f16_where_asked, plane=1),
        Tensor("patch_embed.proj.bias", "v.patch_embd.bias", "hidden_size"),
        Tensor(
            "pos_embed.weight",
            "v.position_embd.weight",
            "num_position_embeddings hidden_size",
            type=always_f32,
        ),
        *linear_of_layers(
            ("blocks.{}.norm1", "v.blk.{}.ln1", "hidden_size"),
            ("blocks.{}.norm2", "v.blk.{}.ln2", "hidden_size"),
            ("blocks.{}.attn.qkv", "v.blk.{}.attn_qkv", "3*hidden_size hidden_size"),
            ("blocks.{}.attn.proj", "v.blk.{}.attn_out", "hidden_size hidden_size"),
            ("blocks.{}.mlp.linear_fc1", "v.blk.{}.ffn_up", "intermediate_size hidden_size"),
            ("blocks.{}.mlp.linear_fc2", "v.blk.{}.ffn_down", "hidden_size intermediate_size"),
        ),
        *linear("merger.norm", "v.post_ln", "hidden_size"),
        *linear("merger.linear_fc1", "mm.0", f"{_MERGED} {_MERGED}"),
        *linear("merger.linear_fc2", "mm.2", f"text_size {_MERGED}"),
        *linear("deepstack_merger_list.{}.norm", "v.deepstack.{}.norm", _MERGED, _deep_layers),
        *linear(
            "deepstack_merger_list.{}.linear_fc1",
            "v.deepstack.{}.fc1",
            f"{_MERGED} {_MERGED}",
            _deep_layers,
        ),
        *linear(
            "deepstack_merger_list.{}.linear_fc2", "v.deepstack.{}.fc2", f"text_size {_MERGED}", _deep_layers
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

TOWERS = (GEMMA_3, gemma4_tower.SEES, gemma4_tower.SEES_AND_HEARS, QWEN_3_VL)
