"""What sees in Ling 3 VL: Qwen3-VL's encoder, with two matrices of the text part's width behind it."""

from __future__ import annotations

from quantmill.gguf_io.convert.keys import FLOAT32, Key
from quantmill.gguf_io.convert.tower import (
    SIZES,
    USE_GELU,
    Tensor,
    Tower,
    linear,
    positions,
    projector_type,
    two_images,
)
from quantmill.gguf_io.convert.towers import qwen3_vl

SEES = Tower(
    classes=("BailingMoeV3VLForConditionalGeneration",),
    prefix=r"(?:model\.)?(?:visual\.|(?=linear_proj\.))",
    tensors=(
        *two_images("patch_embed.proj.weight", "in_channels"),
        Tensor("patch_embed.proj.bias", "v.patch_embd.bias", "hidden_size"),
        positions("pos_embed.weight", "num_position_embeddings hidden_size"),
        *qwen3_vl.LAYERS,
        *linear("merger.norm", "mm.input_norm", "hidden_size"),
        *linear("linear_proj.0", "mm.0", f"text_size {qwen3_vl.MERGED}"),
        *linear("linear_proj.2", "mm.2", "text_size text_size"),
    ),
    keys=(
        *SIZES,
        projector_type("ling3vl"),
        USE_GELU,
        Key("spatial_merge_size", "vision.spatial_merge_size"),
        Key("text_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
    ),
    only={"disable_merger_proj": True},
    defaults=qwen3_vl.SEES.defaults,
)

TOWERS = (SEES,)
