"""What sees in Gemma 3: SigLIP, of which every so many patches become one position."""

from __future__ import annotations

import math

from quantmill.gguf_io.convert.keys import FLOAT32, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    COLOURS,
    SIGLIP_LAYERS,
    SIZES,
    USE_GELU,
    Tensor,
    Tower,
    always_f16,
    always_f32,
    linear,
    plus_one,
    positions,
    projector_type,
)


def _scale_of_gemma(config: Config) -> int | None:
    """How many patches become one position, per side; llama.cpp takes 4 where it is not said."""
    n_per_side = math.isqrt(config["prepared_image_seq_length"])
    scale = config["image_size"] // config["patch_size"] // n_per_side
    return scale if scale > 0 and scale != 4 else None


SEES = Tower(
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
        positions("embeddings.position_embedding.weight", "n_patches hidden_size"),
        *SIGLIP_LAYERS,
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
            values=plus_one,
        ),
    ),
    keys=(
        *SIZES,
        projector_type("gemma3"),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        USE_GELU,
        written("vision.projector.scale_factor", _scale_of_gemma),
    ),
    prepared=(*COLOURS, "image_seq_length"),
    defaults={
        "hidden_size": 768,
        "prepared_image_seq_length": 256,
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

TOWERS = (SEES,)
