"""What sees in Kimi K2.5 and Kimi-VL: MoonViT, of which every few patches become one position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key, Rows, Whole, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    COLOURS,
    SIZES,
    USE_GELU,
    Tensor,
    Tower,
    f16_where_asked,
    linear,
    linear_of_layers,
    of_all_layers,
    one_of_two,
    part,
    positions,
    projector_type,
)

_MIN_PATCHES = 8  # of an image, to llama.cpp
_QKV, _MERGED = "vision_tower.encoder.blocks.{}.wqkv", "hidden_size*merge_height*merge_width"


def _named(key: str, usual: int) -> Callable[[Config], int]:
    """Published checkpoints put vt_ before some names."""
    return lambda config: config.get(f"vt_{key}", usual)


def _halves(values: np.ndarray, config: Config) -> np.ndarray:
    """Queries and keys, in which pairs that RoPE turns are neighbours, with each head's first ones before the second
    ones; values as they are."""

    def turned(one: np.ndarray) -> np.ndarray:
        heads = one.reshape(config["num_attention_heads"], -1, 2, 2, one[0].size)
        return heads.transpose(0, 2, 1, 3, 4).reshape(one.shape)

    queries, keys, rest = np.split(values, 3)
    return np.concatenate((turned(queries), turned(keys), rest))


def _pixels(patches: Callable[[Config], int]) -> Callable[[Config], int]:
    return lambda config: patches(config) * config["patch_size"] ** 2


def _positions(side: str) -> Rows:
    """The converter puts no architecture before these."""
    return written(Whole(f"vision.pos_emb_{side}"), lambda config: config[f"init_pos_emb_{side}"])


_PATCHES = (
    Tensor(
        "vision_tower.patch_embed.proj.weight",
        "v.patch_embd.weight",
        "hidden_size 3 patch_size patch_size",
        type=f16_where_asked,
    ),
    Tensor("vision_tower.patch_embed.proj.bias", "v.patch_embd.bias", "hidden_size"),
)
_POSITIONS = "init_pos_emb_height init_pos_emb_width hidden_size"
_LAYERS = (
    *linear_of_layers(
        ("vision_tower.encoder.blocks.{}.norm0", "v.blk.{}.ln1", "hidden_size"),
        ("vision_tower.encoder.blocks.{}.norm1", "v.blk.{}.ln2", "hidden_size"),
        ("vision_tower.encoder.blocks.{}.wo", "v.blk.{}.attn_out", "hidden_size hidden_size"),
        ("vision_tower.encoder.blocks.{}.mlp.fc0", "v.blk.{}.ffn_up", "intermediate_size hidden_size"),
        ("vision_tower.encoder.blocks.{}.mlp.fc1", "v.blk.{}.ffn_down", "hidden_size intermediate_size"),
    ),
    *linear("vision_tower.encoder.final_layernorm", "v.post_ln", "hidden_size"),
)
_DEFAULTS = {
    "hidden_size": _named("hidden_size", 1152),
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "intermediate_size": _named("intermediate_size", 4304),
    "merge_height": one_of_two("merge_kernel_size", (2, 2), 0),
    "merge_width": one_of_two("merge_kernel_size", (2, 2), 1),
    "num_attention_heads": _named("num_attention_heads", 16),
    "num_hidden_layers": _named("num_hidden_layers", 27),
    "patch_size": 14,
}

K2_5 = Tower(
    classes=("KimiK25ForConditionalGeneration",),
    prefix=r"(?=vision_tower\.|mm_projector\.)",
    tensors=(
        *_PATCHES,
        positions("vision_tower.patch_embed.pos_emb.weight", _POSITIONS),
        *linear(_QKV, "v.blk.{}.attn_qkv", "3*hidden_size hidden_size", of_all_layers, _halves),
        *_LAYERS,
        *linear("mm_projector.pre_norm", "mm.input_norm", "hidden_size"),
        *linear("mm_projector.proj.0", "mm.1", f"{_MERGED} {_MERGED}"),
        *linear("mm_projector.proj.2", "mm.2", f"text_size {_MERGED}"),
    ),
    keys=(
        *SIZES,
        projector_type("kimik25"),
        *map(_positions, ("height", "width", "time")),
        written("use_gelu", lambda config: config["projector_hidden_act"] == "gelu", BOOL),
        Key("projector_ln_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        Key("merge_height", "vision.projector.scale_factor"),
        written("vision.image_min_pixels", _pixels(lambda config: _MIN_PATCHES)),
        written("vision.image_max_pixels", _pixels(lambda config: config["prepared_in_patch_limit"])),
    ),
    prepared=(*COLOURS, "in_patch_limit"),
    defaults={
        **_DEFAULTS,
        "image_size": lambda config: config["init_pos_emb_height"] * config["patch_size"],
        "init_pos_emb_time": 4,
        "prepared_in_patch_limit": 16384,
        "projector_hidden_act": "gelu",
        "projector_ln_eps": 1e-5,
    },
)

VL = Tower(
    classes=("KimiVLForConditionalGeneration",),
    prefix=r"(?=vision_tower\.|multi_modal_projector\.)",
    tensors=(
        *_PATCHES,
        positions(
            "vision_tower.patch_embed.pos_emb.weight",
            _POSITIONS,
            "init_pos_emb_height*init_pos_emb_width hidden_size",
        ),
        *(
            Tensor(
                f"{_QKV}.{end}",
                f"v.blk.{{}}.attn_{which}.{end}",
                f"3*hidden_size{of}",
                of_all_layers,
                values=part(i, 3),
                becomes=f"hidden_size{of}",
            )
            for end, of in (("weight", " hidden_size"), ("bias", ""))
            for i, which in enumerate("qkv")
        ),
        *_LAYERS,
        *linear("multi_modal_projector.pre_norm", "mm.input_norm", "hidden_size"),
        *linear("multi_modal_projector.linear_1", "mm.1", f"{_MERGED} {_MERGED}"),
        *linear("multi_modal_projector.linear_2", "mm.2", f"text_size {_MERGED}"),
    ),
    keys=(
        *SIZES,
        projector_type("kimivl"),
        USE_GELU,
        written("vision.projector.scale_factor", lambda config: 2),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
    ),
    fixed={"image_size": 896},
    defaults={**_DEFAULTS, "layer_norm_eps": 1e-5},
)

TOWERS = (K2_5, VL)
