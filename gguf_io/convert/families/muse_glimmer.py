"""Muse Glimmer, its text part: gated attention, with a window and RoPE in all but every fourth layer, norms before and
after; queries and keys are normed without weights, which llama.cpp's converter makes up.

transformers has its text model only inside the one that sees, with no output of its own; so it is converted and
quantized, not run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, Key, need
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

POST_NORM_EPSILON = 1e-8  # the only one that llama.cpp has


def _is_full(config: Config, layer: int) -> bool:
    """As the class fills it in: every fourth layer, the last among them."""
    return (config["num_hidden_layers"] - 1 - layer) % 4 == 0


def _layer_types(config: Config) -> list[str]:
    layers = range(config["num_hidden_layers"])
    return ["full_attention" if _is_full(config, layer) else "sliding_attention" for layer in layers]


def _check(config: Config) -> None:
    keys.only(config, {"post_norm_eps": POST_NORM_EPSILON})
    bases = config.get("layer_rope_theta")
    turns = [kind == "sliding_attention" for kind in config["layer_types"]]
    wanted = [config["rope_theta"] if turned else 0 for turned in turns]
    if bases is not None and bases != wanted:
        raise GGUFError(
            "config.json: layer_rope_theta must be rope_theta where a layer has a window and 0 where it has none; "
            f"llama.cpp has no other: {bases!r}"
        )


def _head_norms(config: Config) -> Mapping[str, rope.Tables]:
    """Weights of the norms of queries and keys, before the queries' matrix."""
    scale, ones = np.float32(need(config, "qk_scale_factor")), np.ones(config["head_dim"], np.float32)
    return {
        f"blk.{layer}.attn_q.weight": {
            f"blk.{layer}.attn_q_norm.weight": scale * ones,
            f"blk.{layer}.attn_k_norm.weight": ones,
        }
        for layer in range(config["num_hidden_layers"])
    }


FAMILY = Family(
    classes=("MuseGlimmerForConditionalGeneration",),
    arch="muse-glimmer",
    model_type="muse_glimmer_text",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.NORMS_AFTER,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        layout.Tensors({"blk.attn_gate.weight": "num_attention_heads*head_dim hidden_size"}),
        layout.Tensors(layout.FEED_FORWARD),
    ),
    keys=(
        *keys.SIZES,
        rope.ROPE,
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        Key("final_logit_softcapping", "final_logit_softcapping", FLOAT32, needed=True),
        Key("output_multiplier", "logit_scale", FLOAT32, needed=True),
        keys.WINDOW,
        keys.Rows(keys.write_pattern),
    ),
    defaults={
        "final_logit_softcapping": 20.0,
        "head_dim": 128,
        "layer_types": _layer_types,
        "max_position_embeddings": 131072,
        "output_multiplier": 0.19611613513818404,
        "post_norm_eps": POST_NORM_EPSILON,
        "qk_scale_factor": 3.87,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 2048,
        "tie_word_embeddings": False,
    },
    rules=(
        *rules.tied_head_left_out(by_default=False),
        *rules.INTERLEAVED_QK,
        Rule(r"layernorm\.weight$", (Part(values=rules.PLUS_ONE),)),
        Rule(r"^model\.layers\.(\d+)\.self_attn\.gate_proj\.weight$", (Part(r"blk.\1.attn_gate.weight"),)),
    ),
    vocabulary=tokenizer.muse_glimmer,
    names=MODEL_ARCH.GEMMA3,
    made=_head_norms,
    check=_check,
    runs=False,
)
