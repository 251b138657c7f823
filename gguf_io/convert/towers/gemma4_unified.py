"""What sees and hears in Gemma 4 Unified: no encoders, a matrix for patches of images and one for sounds."""

from __future__ import annotations

import numpy as np

from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, STRING, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import SIZES, Tensor, Tower, f16_where_asked, linear, positions

_PIXELS = "patch*patch*3"


def _colours_first(values: np.ndarray, config: Config) -> np.ndarray:
    """Columns of pixels, each with its colours, as columns of a colour, each with its pixels."""
    return values.reshape(-1, config["patch"] ** 2, 3).swapaxes(1, 2).reshape(values.shape)


def _sides_first(values: np.ndarray, config: Config) -> np.ndarray:
    return values.swapaxes(0, 1)


SEES_AND_HEARS = Tower(
    classes=("Gemma4UnifiedForConditionalGeneration",),
    hears=True,
    prefix=r"model\.(?:vision_embedder\.|(?=embed_vision\.|embed_audio\.))",
    tensors=(
        *(
            Tensor(f"patch_ln1.{end}", f"v.patch_norm.1.{end}", _PIXELS, values=_colours_first)
            for end in ("weight", "bias")
        ),
        Tensor(
            "patch_dense.weight",
            "v.patch_embd.weight",
            f"hidden_size {_PIXELS}",
            type=f16_where_asked,
            values=_colours_first,
        ),
        Tensor("patch_dense.bias", "v.patch_embd.bias", "hidden_size"),
        *linear("patch_ln2", "v.patch_norm.2", "hidden_size"),
        positions(
            "pos_embedding", "mm_posemb_size 2 hidden_size", "2 mm_posemb_size hidden_size", _sides_first
        ),
        *linear("pos_norm", "v.patch_norm.3", "hidden_size"),
        Tensor(
            "embed_vision.embedding_projection.weight",
            "mm.input_projection.weight",
            "text_size output_proj_dims",
        ),
        Tensor(
            "embed_audio.embedding_projection.weight",
            "mm.a.input_projection.weight",
            "text_size audio_output_proj_dims",
        ),
    ),
    keys=(
        *SIZES,
        written("has_audio_encoder", lambda config: True, BOOL),
        Key("text_size", "audio.projection_dim", needed=True),
        Key("audio_audio_embed_dim", "audio.embedding_length"),
        written("audio.feed_forward_length", lambda config: 0),
        written("audio.block_count", lambda config: 0),
        written("audio.attention.head_count", lambda config: 0),
        written("vision.projector_type", lambda config: "gemma4uv", STRING),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
        written("audio.projector_type", lambda config: "gemma4ua", STRING),
        Key("audio_input_feat_size", "audio.num_mel_bins"),
        Key("audio_layer_norm_eps", "audio.attention.layer_norm_epsilon", FLOAT32),
    ),
    # There are no layers; nothing reads image_size.
    fixed={"image_size": 224, "intermediate_size": 0, "num_hidden_layers": 0, "num_attention_heads": 0},
    defaults={
        "layer_norm_eps": 1e-6,
        "mm_embed_dim": 3840,
        "mm_posemb_size": 1120,
        "output_proj_dims": 3840,
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "audio_audio_embed_dim": 640,
        "audio_input_feat_size": 128,
        "audio_layer_norm_eps": 1e-6,
        "audio_output_proj_dims": lambda config: config["audio_audio_embed_dim"],
        "hidden_size": lambda config: config["mm_embed_dim"],
        "patch": lambda config: (
            config.get("model_patch_size") or config["patch_size"] * config["pooling_kernel_size"]
        ),
    },
)

TOWERS = (SEES_AND_HEARS,)
