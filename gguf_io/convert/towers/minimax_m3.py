"""What sees in MiniMax M3: CLIP's layers with RoPE over time, height and width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantmill.gguf_io.convert.keys import FLOAT32, Key
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    SIGLIP_LAYERS,
    SIZES,
    USE_GELU,
    Tensor,
    Tower,
    linear,
    projector_type,
    two_images,
)
from quantmill.gguf_io.errors import GGUFError

_HEAD = 80
_MERGED = "text_size*merge*merge"


def _merge(config: Config) -> int:
    """How many patches become one position, along a side."""
    settings = config.get("img_token_compression_config") or {}
    if not isinstance(settings, dict):
        raise GGUFError(f"config.json: img_token_compression_config must be an object, not {settings!r}")
    found = settings.get("spatial_merge_size", 2)
    return int(found) if type(found) is int else 0


def _halves(values: np.ndarray, config: Config) -> np.ndarray:
    """Queries and keys: first ones of time, height and width, then second ones, as first and second ones of each."""
    n = 2 * ((_HEAD // 3) // 2) // 2
    order = [half * 3 * n + axis * n + i for axis in range(3) for half in range(2) for i in range(n)]
    order += range(6 * n, _HEAD)
    return values.reshape(config["num_attention_heads"], _HEAD, -1)[:, order].reshape(values.shape)


def _turned(tensor: Tensor) -> Tensor:
    turns = ".attn_q." in tensor.target or ".attn_k." in tensor.target
    name = f"vision_tower.vision_model.{tensor.name}"
    return replace(tensor, name=name, values=_halves if turns else None)


SEES = Tower(
    classes=("MiniMaxM3SparseForConditionalGeneration",),
    prefix=r"(?=vision_tower\.|multi_modal_projector\.|patch_merge_mlp\.)",
    tensors=(
        *two_images("vision_tower.vision_model.embeddings.patch_embedding.weight", "num_channels"),
        *linear("vision_tower.vision_model.pre_layrnorm", "v.pre_ln", "hidden_size"),
        *(_turned(tensor) for tensor in SIGLIP_LAYERS),
        *linear("multi_modal_projector.linear_1", "mm.1", "outer_projector_hidden_size hidden_size"),
        *linear("multi_modal_projector.linear_2", "mm.2", "text_size outer_projector_hidden_size"),
        *linear("patch_merge_mlp.linear_1", "mm.merger.fc1", f"outer_projector_hidden_size {_MERGED}"),
        *linear("patch_merge_mlp.linear_2", "mm.merger.fc2", "text_size outer_projector_hidden_size"),
    ),
    keys=(
        *SIZES,
        projector_type("minimax_m3"),
        USE_GELU,
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        Key("merge", "vision.spatial_merge_size"),
    ),
    outer=("projector_hidden_size",),
    only={"head_size": _HEAD},
    defaults={
        "head_size": lambda config: config["hidden_size"] // config["num_attention_heads"],
        "hidden_size": 1280,
        "image_size": 2016,
        "intermediate_size": 5120,
        "layer_norm_eps": 1e-5,
        "merge": _merge,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 32,
        "outer_projector_hidden_size": lambda config: config["text_size"],
        "patch_size": 14,
    },
)

TOWERS = (SEES,)
