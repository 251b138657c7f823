"""What sees in LFM2-VL and LFM2.5-VL: SigLIP 2, of which every few patches become one position."""

from __future__ import annotations

from quantmill.gguf_io.convert.keys import FLOAT32, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    SIGLIP_LAYERS,
    SIZES,
    USE_GELU,
    Tensor,
    Tower,
    linear,
    patches_in_rows,
    positions,
    projector_type,
)
from quantmill.gguf_io.errors import GGUFError

_JOINED = "hidden_size*outer_downsample_factor*outer_downsample_factor"


def _normed(config: Config) -> tuple[tuple[int, int], ...]:
    return ((0, 0),) if config["outer_projector_use_layernorm"] else ()


def _used_layers(config: Config) -> int:
    """vision_feature_layer counts from the end: what comes behind it is in the file and not computed."""
    last, n_layers = config.get("outer_vision_feature_layer", -1), config["num_hidden_layers"]
    if type(last) is not int or not -n_layers <= last < 0:
        raise GGUFError(f"config.json: vision_feature_layer must be from {-n_layers} to -1, not {last!r}")
    return int(n_layers + last + 1)


SEES = Tower(
    classes=("Lfm2VlForConditionalGeneration",),
    prefix=r"(?:model\.)?(?:vision_tower\.(?:vision_model\.)?|(?=multi_modal_projector\.))",
    left_out=r"head\.",
    tensors=(
        patches_in_rows("embeddings.patch_embedding.weight"),
        Tensor("embeddings.patch_embedding.bias", "v.patch_embd.bias", "hidden_size"),
        positions("embeddings.position_embedding.weight", "num_patches hidden_size"),
        *SIGLIP_LAYERS,
        *linear("post_layernorm", "v.post_ln", "hidden_size"),
        *linear("multi_modal_projector.layer_norm", "mm.input_norm", _JOINED, _normed),
        *linear("multi_modal_projector.linear_1", "mm.1", f"outer_projector_hidden_size {_JOINED}"),
        *linear("multi_modal_projector.linear_2", "mm.2", "text_size outer_projector_hidden_size"),
    ),
    keys=(
        *SIZES,
        projector_type("lfm2"),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        Key("outer_downsample_factor", "vision.projector.scale_factor"),
        USE_GELU,
        written("vision.block_count", _used_layers),
    ),
    outer=(
        "downsample_factor",
        "projector_bias",
        "projector_hidden_size",
        "projector_use_layernorm",
        "vision_feature_layer",
    ),
    fixed={"image_size": 256},
    # llama.cpp's converter knows patches of 16 pixels only, its encoder no projector without biases
    only={"patch_size": 16, "outer_projector_bias": True},
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "num_patches": 256,
        "outer_downsample_factor": 2,
        "outer_projector_hidden_size": 2560,
        "outer_projector_use_layernorm": True,
        "patch_size": 16,
    },
)

TOWERS = (SEES,)
