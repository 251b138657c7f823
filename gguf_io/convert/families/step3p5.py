"""Step 3.5, text part of Step 3.7: gated attention with more heads where it slides, experts behind dense layers.

transformers has this text model only inside the one that sees, with no output of its own; so it is converted and
quantized, not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, nextn, rope, rules
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, BOOL, FLOAT32, UINT32, Item, Key, need
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.errors import GGUFError

_SHARES = {"sliding_attention": 1.0, "full_attention": 0.5}  # of a head that RoPE turns


def _padded(config: Config, key: str, usual: Any) -> list[Any]:
    """A value for each layer that config.json speaks of, those that predict further tokens included."""
    n_layers = config["num_hidden_layers"] + (config.get("num_nextn_predict_layers") or 0)
    found = list(config.get(key) or [])
    return (found + [usual] * (n_layers - len(found)))[:n_layers]


def _each(value: Callable[[Config], list[Any]]) -> Callable[[Config], list[Any]]:
    """For the layers that are there."""
    return lambda config: value(config)[: config["num_hidden_layers"] + config.get("nextn", 0)]


def _kinds(config: Config) -> list[str]:
    kinds = _padded(config, "layer_types", "full_attention")
    shares = _padded(config, "partial_rotary_factors", 0.5)
    if [_SHARES.get(kind) for kind in kinds] != shares:
        raise GGUFError(
            "config.json: partial_rotary_factors is not 1 for sliding and 0.5 for full attention, which llama.cpp has"
        )
    return kinds


def _by_kind(key: str) -> Any:
    """A number for each layer: attention_other_setting has that of layers that slide."""

    def numbers(config: Config) -> list[int]:
        usual = need(config, key)
        other = (config.get("attention_other_setting") or {}).get(key, usual)
        return [other if kind == "sliding_attention" else usual for kind in _kinds(config)]

    return numbers


def _experts_from(config: Config) -> int:
    """The first layer with experts, of a list of them in letters."""
    stated = config.get("moe_layers_enum")
    return min(map(int, stated.split(","))) if isinstance(stated, str) and stated.strip() else 0


def _is_sparse(config: Config, layer: int) -> bool:
    stated = config.get("moe_layers_enum")
    return str(layer) in stated.replace(" ", "").split(",") if isinstance(stated, str) else layer >= 3


def _table(config: Config) -> rope.Tables:
    """What Llama 3's scaling divides each frequency of full attention by, half of a head; the rest, that only layers
    which slide turn, by 1. Single precision where llama.cpp's converter has it."""
    settings = rope.of_full_attention(config)
    if settings["rope_type"] != "llama3":
        return {}
    size = keys.head_dim(config)
    rotated = int(size * _SHARES["full_attention"])
    factor, low, high = (
        float(settings.get(key, usual))
        for key, usual in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
    )
    if 0 in (factor, low, high) or low == high:
        raise GGUFError(
            f"config.json: RoPE's factor {factor}, low_freq_factor {low} and high_freq_factor {high} cannot be used"
        )
    context = int(settings.get("original_max_position_embeddings", 8192))
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    powers = (float(settings.get("rope_theta", 10000.0)) ** exponents.astype(np.float64)).astype(np.float32)
    wavelengths = 2 * math.pi / (np.float32(1) / powers).astype(np.float64)
    smooth = (context / wavelengths - low) / (high - low)
    with np.errstate(divide="ignore"):
        factors = np.where(wavelengths < context / high, 1.0, 1.0 / ((1.0 - smooth) / factor + smooth))
    factors = np.where(wavelengths > context / low, factor, factors)
    rest = np.ones(size // 2 - len(factors))
    return {"rope_freqs.weight": np.concatenate((factors, rest)).astype(np.float32)}


def _limits(key: str, gguf: str) -> keys.Rows:
    def write(config: Config) -> Iterable[Item]:
        if config.get(key) is not None:
            yield gguf, ARRAY, [float(limit or 0) for limit in _each(lambda it: _padded(it, key, 0))(config)]

    return keys.Rows(write)


_WHERE = r"^model\.layers\.(\d+)\."
ATTENTION = {
    "blk.attn_norm.weight": "hidden_size",
    "blk.ffn_norm.weight": "hidden_size",
    "blk.attn_q.weight": "heads*head_dim hidden_size",
    "blk.attn_k.weight": "kv_heads*head_dim hidden_size",
    "blk.attn_v.weight": "kv_heads*head_dim hidden_size",
    "blk.attn_output.weight": "hidden_size heads*head_dim",
    "blk.attn_gate.weight": "heads hidden_size",
    **layout.HEAD_NORMS.shapes,
}
EXPERTS = {
    **layout.expert_tensors("moe_num_experts", "moe_intermediate_size"),
    **layout.shared_expert("share_expert_dim"),
    "blk.exp_probs_b.bias": "moe_num_experts",
}


FAMILY = Family(
    classes=("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
    arch=MODEL_ARCH.STEP35,
    model_type="step3p5",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.Tensors(ATTENTION),
        layout.Tensors(layout.FEED_FORWARD, lambda config, layer: not _is_sparse(config, layer)),
        layout.Tensors(EXPERTS, _is_sparse),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        keys.INNER,
        keys.written("attention.head_count", _each(lambda config: config["heads"]), ARRAY),
        rope.ROPE,
        keys.RMS_NORM,
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.written("attention.head_count_kv", _each(lambda config: config["kv_heads"]), ARRAY),
        keys.WINDOW,
        keys.written(
            "attention.sliding_window_pattern",
            _each(lambda config: [kind == "sliding_attention" for kind in _kinds(config)]),
            ARRAY,
        ),
        Key("moe_num_experts", "expert_count", needed=True),
        Key("moe_top_k", "expert_used_count", needed=True),
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("share_expert_dim", "expert_shared_feed_forward_length", needed=True),
        Key("moe_router_scaling_factor", "expert_weights_scale", FLOAT32),
        Key("norm_expert_weight", "expert_weights_norm", BOOL),
        keys.written("leading_dense_block_count", _experts_from, UINT32),
        keys.written("moe_every_n_layers", lambda config: int(config.get("moe_every_n_layer", 1))),
        _limits("swiglu_limits", "swiglu_clamp_exp"),
        _limits("swiglu_limits_shared", "swiglu_clamp_shexp"),
        nextn.LAYERS,
    ),
    defaults={
        "head_dim": 128,
        "heads": _by_kind("num_attention_heads"),
        "kv_heads": _by_kind("num_attention_groups"),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    tables=_table,
    rules=(
        rules.LATER_LAYERS_LEFT_OUT,
        Rule(
            rf"{_WHERE}transformer\.shared_head\.norm\.weight$",
            (Part(r"blk.\1.nextn.shared_head_norm.weight", values=rules.PLUS_ONE),),
        ),
        Rule(
            rf"{_WHERE}transformer\.shared_head\.output\.weight$",
            (Part(r"blk.\1.nextn.shared_head_head.weight"),),
        ),
        *rules.NORM_PLUS_ONE,
        Rule(rf"{_WHERE}self_attn\.g_proj\.weight$", (Part(r"blk.\1.attn_gate.weight"),)),
        Rule(rf"{_WHERE}moe\.gate\.weight$", (Part(r"blk.\1.ffn_gate_inp.weight"),)),
        Rule(rf"{_WHERE}moe\.router_bias$", (Part(r"blk.\1.exp_probs_b.bias"),)),
        Rule(rf"{_WHERE}moe\.(gate|up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2_exps.weight"),)),
        Rule(rf"{_WHERE}share_expert\.(gate|up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2_shexp.weight"),)),
    ),
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {**ATTENTION, **layout.optional(layout.FEED_FORWARD), **layout.optional(EXPERTS)},
        rules.PLUS_ONE,
    ),
    runs=False,
)
