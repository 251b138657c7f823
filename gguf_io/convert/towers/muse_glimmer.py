"""What sees in Muse Glimmer: a patch holds two images in a row, and RoPE turns pairs of halves."""

from __future__ import annotations

import numpy as np

from quantmill.gguf_io.convert.keys import FLOAT32, Key
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    SIZES,
    Tensor,
    Tower,
    f16_where_asked,
    linear,
    linear_of_layers,
    of_all_layers,
    positions,
    projector_type,
)


def _both_images(values: np.ndarray, config: Config) -> np.ndarray:
    """What a patch of two images does to one that stands still."""
    return values.reshape(len(values), config["patch_temporal"], -1).sum(axis=1, dtype=np.float32)


def _neighbours(values: np.ndarray, config: Config) -> np.ndarray:
    """Queries and keys with the pairs that RoPE turns side by side."""
    halves = values.reshape(config["num_attention_heads"], 2, -1, values[0].size)
    return halves.swapaxes(1, 2).reshape(values.shape)


SEES = Tower(
    classes=("MuseGlimmerForConditionalGeneration",),
    prefix=r"model\.(?=vision_tower\.|vision_adapter\.|vision_projection\.)",
    tensors=(
        Tensor(
            "vision_tower.patch_embedder.patch_embedding.weight",
            "v.patch_embd.weight",
            "hidden_size patch_temporal*3*patch_size*patch_size",
            type=f16_where_asked,
            values=_both_images,
            becomes="hidden_size 3 patch_size patch_size",
        ),
        positions(
            "vision_tower.patch_embedder.position_embedding_table.weight",
            "pos_emb_height*pos_emb_width hidden_size",
        ),
        *linear("vision_tower.ln_pre", "v.pre_ln", "hidden_size"),
        *(
            tensor
            for which, change in (("q", _neighbours), ("k", _neighbours), ("v", None))
            for tensor in linear(
                f"vision_tower.layers.{{}}.attn.{which}_proj",
                f"v.blk.{{}}.attn_{which}",
                "hidden_size hidden_size",
                of_all_layers,
                change,
            )
        ),
        *linear_of_layers(
            ("vision_tower.layers.{}.norm1", "v.blk.{}.ln1", "hidden_size"),
            ("vision_tower.layers.{}.norm2", "v.blk.{}.ln2", "hidden_size"),
            ("vision_tower.layers.{}.attn.proj", "v.blk.{}.attn_out", "hidden_size hidden_size"),
            ("vision_tower.layers.{}.mlp.fc1", "v.blk.{}.ffn_up", "intermediate_size hidden_size"),
            ("vision_tower.layers.{}.mlp.fc2", "v.blk.{}.ffn_down", "hidden_size intermediate_size"),
        ),
        *linear("vision_tower.ln_post", "v.post_ln", "hidden_size"),
        Tensor(
            "vision_adapter.fc1.weight", "mm.0.weight", "outer_projector_hidden_size outer_out_hidden_size"
        ),
        Tensor(
            "vision_adapter.fc2.weight",
            "mm.1.weight",
            "outer_projector_hidden_size outer_projector_hidden_size",
        ),
        Tensor("vision_projection.weight", "mm.2.weight", "text_size outer_projector_hidden_size"),
    ),
    keys=(
        *SIZES,
        projector_type("muse-glimmer"),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        Key("merge_size", "vision.spatial_merge_size"),
    ),
    outer=("out_hidden_size", "projector_hidden_size"),
    defaults={
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "layer_norm_eps": 1e-5,
        "merge_size": 2,
        "num_attention_heads": 16,
        "num_hidden_layers": 50,
        "outer_out_hidden_size": 6144,
        "outer_projector_hidden_size": 4096,
        "patch_size": 14,
        "patch_temporal": 2,
        "pos_emb_height": 32,
        "pos_emb_width": 32,
        "image_size": lambda config: config["pos_emb_height"] * config["patch_size"] * config["merge_size"],
    },
)

TOWERS = (SEES,)
