"""What sees and what hears in Gemma 4: an encoder of images, of some models also one of sounds (a conformer). llama.cpp
takes both from one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from quantmill.gguf_io.convert.conformer import convolutions, of_layers, sizes
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, STRING, Key, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import (
    SIZES,
    Tensor,
    Tower,
    always_f32,
    of_all_layers,
    patches_in_rows,
    positions,
)

_CLIPPED = (
    ("self_attn.q_proj", "attn_q", "num_attention_heads*head_dim hidden_size"),
    ("self_attn.k_proj", "attn_k", "num_key_value_heads*head_dim hidden_size"),
    ("self_attn.v_proj", "attn_v", "num_key_value_heads*head_dim hidden_size"),
    ("self_attn.o_proj", "attn_out", "hidden_size num_attention_heads*head_dim"),
    ("mlp.gate_proj", "ffn_gate", "intermediate_size hidden_size"),
    ("mlp.up_proj", "ffn_up", "intermediate_size hidden_size"),
    ("mlp.down_proj", "ffn_down", "hidden_size intermediate_size"),
)
_BOUNDS = ("input_max", "input_min", "output_max", "output_min")
_NORMS = (
    ("input_layernorm", "ln1", "hidden_size"),
    ("post_attention_layernorm", "attn_post_norm", "hidden_size"),
    ("pre_feedforward_layernorm", "ln2", "hidden_size"),
    ("post_feedforward_layernorm", "ffn_post_norm", "hidden_size"),
    ("self_attn.q_norm", "attn_q_norm", "head_dim"),
    ("self_attn.k_norm", "attn_k_norm", "head_dim"),
)


def _where(key: str, layers: bool) -> Callable[[Config], Iterable[tuple[int, int]]]:
    """All layers, or once, where a setting is true."""

    def numbers(config: Config) -> Iterable[tuple[int, int]]:
        return () if not config[key] else of_all_layers(config) if layers else ((0, 0),)

    return numbers


SEES = Tower(
    classes=("Gemma4ForConditionalGeneration",),
    prefix=r"(?:model\.)?(?:vision_tower\.|(?=embed_vision\.))",
    tensors=(
        patches_in_rows("patch_embedder.input_proj.weight"),
        positions("patch_embedder.position_embedding_table", "2 position_embedding_size hidden_size"),
        *(
            Tensor(
                f"encoder.layers.{{}}.{here}.linear.weight",
                f"v.blk.{{}}.{there}.weight",
                shape,
                of_all_layers,
            )
            for here, there, shape in _CLIPPED
        ),
        *(
            Tensor(
                f"encoder.layers.{{}}.{here}.{end}",
                f"v.blk.{{}}.{there}.{end}",
                "",
                _where("use_clipped_linears", True),
            )
            for here, there, _ in _CLIPPED
            for end in _BOUNDS
        ),
        *(
            Tensor(f"encoder.layers.{{}}.{here}.weight", f"v.blk.{{}}.{there}.weight", shape, of_all_layers)
            for here, there, shape in _NORMS
        ),
        *(
            Tensor(name, f"v.{name}", "hidden_size", _where("standardize", False))
            for name in ("std_bias", "std_scale")
        ),
        Tensor(
            "embed_vision.embedding_projection.weight", "mm.input_projection.weight", "text_size hidden_size"
        ),
    ),
    keys=(
        *SIZES,
        written("vision.projector_type", lambda config: "gemma4v", STRING),
        Key("layer_norm_eps", "vision.attention.layer_norm_epsilon", FLOAT32),
    ),
    fixed={"image_size": 224},  # nothing reads it
    defaults={
        "head_dim": 64,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": 12,
        "num_hidden_layers": 16,
        "num_key_value_heads": 12,
        "patch_size": 16,
        "position_embedding_size": 10240,
        "standardize": False,
        "use_clipped_linears": False,
    },
)


_of_hearing_layers = of_layers("audio_num_hidden_layers")


def _clipped_layers(config: Config) -> Iterable[tuple[int, int]]:
    return _of_hearing_layers(config) if config["audio_use_clipped_linears"] else ()


def _softplus(values: np.ndarray, config: Config) -> np.ndarray:
    """log(1 + exp(x)), correctly rounded."""
    return np.logaddexp(0, values.astype(np.float64)).astype(np.float32)


_WIDTH, _IN = "audio_hidden_size", "audio_tower.layers.{}."
_LINEAR = (
    *(
        (f"feed_forward{i + 1}.ffw_layer_{j + 1}", f"ffn_{there}{end}", f"{shape[0]} {shape[1]}")
        for i, end in enumerate(("", "_1"))
        for j, (there, *shape) in enumerate((("up", f"4*{_WIDTH}", _WIDTH), ("down", _WIDTH, f"4*{_WIDTH}")))
    ),
    *((f"self_attn.{which}_proj", f"attn_{which}", f"{_WIDTH} {_WIDTH}") for which in "qkv"),
    ("self_attn.post", "attn_out", f"{_WIDTH} {_WIDTH}"),
    ("lconv1d.linear_start", "conv_pw1", f"2*{_WIDTH} {_WIDTH}"),
    ("lconv1d.linear_end", "conv_pw2", f"{_WIDTH} {_WIDTH}"),
)
_HEARING_NORMS = (
    *(
        (f"feed_forward{i + 1}.{here}_layer_norm", f"ffn_{there}{end}")
        for i, end in enumerate(("", "_1"))
        for here, there in (("pre", "norm"), ("post", "post_norm"))
    ),
    ("lconv1d.pre_layer_norm", "conv_norm"),
    ("lconv1d.conv_norm", "norm_conv"),
    ("norm_pre_attn", "attn_pre_norm"),
    ("norm_post_attn", "attn_post_norm"),
    ("norm_out", "ln2"),
)
HEARS = (
    *(
        Tensor(f"{_IN}{here}.linear.weight", f"a.blk.{{}}.{there}.weight", shape, _of_hearing_layers)
        for here, there, shape in _LINEAR
    ),
    *(
        Tensor(f"{_IN}{here}.{end}", f"a.blk.{{}}.{there}.{end}", "", _clipped_layers)
        for here, there, _ in _LINEAR
        for end in _BOUNDS
    ),
    *(
        Tensor(f"{_IN}{here}.weight", f"a.blk.{{}}.{there}.weight", _WIDTH, _of_hearing_layers)
        for here, there in _HEARING_NORMS
    ),
    Tensor(
        f"{_IN}self_attn.per_dim_scale",
        "a.blk.{}.per_dim_scale.weight",
        "audio_head_dim",
        _of_hearing_layers,
        values=_softplus,
    ),
    Tensor(
        f"{_IN}self_attn.relative_k_proj.weight",
        "a.blk.{}.attn_k_rel.weight",
        f"{_WIDTH} {_WIDTH}",
        _of_hearing_layers,
    ),
    Tensor(
        f"{_IN}lconv1d.depthwise_conv1d.weight",
        "a.blk.{}.conv_dw.weight",
        f"{_WIDTH} 1 audio_conv_kernel_size",
        _of_hearing_layers,
        type=always_f32,
        becomes="audio_hidden_size audio_conv_kernel_size",
    ),
    *convolutions("layer"),
    Tensor(
        "audio_tower.subsample_conv_projection.input_proj_linear.weight",
        "a.input_projection.weight",
        f"{_WIDTH} audio_flat",
        type=always_f32,
    ),
    Tensor("audio_tower.output_proj.weight", "a.pre_encode.out.weight", f"audio_output_proj_dims {_WIDTH}"),
    Tensor("audio_tower.output_proj.bias", "a.pre_encode.out.bias", "audio_output_proj_dims"),
    Tensor(
        "embed_audio.embedding_projection.weight",
        "mm.a.input_projection.weight",
        "text_size audio_output_proj_dims",
    ),
)

SEES_AND_HEARS = replace(
    SEES,
    hears=True,
    prefix=r"(?:model\.)?(?:vision_tower\.|(?=embed_vision\.|embed_audio\.|audio_tower\.))",
    tensors=(*SEES.tensors, *HEARS),
    keys=(
        *SIZES,
        written("has_audio_encoder", lambda config: True, BOOL),
        Key("text_size", "audio.projection_dim", needed=True),
        Key(_WIDTH, "audio.embedding_length"),
        written("audio.feed_forward_length", lambda config: 4 * config[_WIDTH]),
        Key("audio_num_hidden_layers", "audio.block_count"),
        Key("audio_num_attention_heads", "audio.attention.head_count"),
        *SEES.keys[len(SIZES) :],
        written("audio.projector_type", lambda config: "gemma4a", STRING),
        Key("audio_input_feat_size", "audio.num_mel_bins"),
        Key("audio_layer_norm_eps", "audio.attention.layer_norm_epsilon", FLOAT32),
    ),
    defaults={
        **SEES.defaults,
        _WIDTH: 1024,
        "audio_conv_kernel_size": 5,
        "audio_input_feat_size": 128,
        "audio_layer_norm_eps": 1e-6,
        "audio_num_attention_heads": 8,
        "audio_num_hidden_layers": 12,
        "audio_output_proj_dims": 1536,
        "audio_use_clipped_linears": True,
        **sizes("audio_subsampling_conv_channels"),
        "audio_head_dim": lambda config: config[_WIDTH] // config["audio_num_attention_heads"],
    },
)

TOWERS = (SEES, SEES_AND_HEARS)
