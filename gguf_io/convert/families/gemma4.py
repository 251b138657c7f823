"""Gemma 4, its text part where it has others: two sizes of heads, layers that share keys and values, an embedding for
each layer, experts beside the feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families.gemma3 import FINAL_CAP, ONLY_KNOWN_TOKENS
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, UINT32, Item, Key
from quantmill.gguf_io.convert.mamba2 import of_layers
from quantmill.gguf_io.convert.rules import Config, Part, Rule

UNROTATED = 1e30  # what a frequency is divided by so that it does not turn
_WHERE = r"^model\.layers\.(\d+)\."
RULES = (
    *ONLY_KNOWN_TOKENS,
    Rule(rf"{_WHERE}layer_scalar$", (Part(r"blk.\1.layer_output_scale.weight"),)),
    Rule(rf"{_WHERE}router\.proj\.weight$", (Part(r"blk.\1.ffn_gate_inp.weight"),)),
    Rule(rf"{_WHERE}router\.scale$", (Part(r"blk.\1.ffn_gate_inp.scale"),)),
    Rule(rf"{_WHERE}router\.per_expert_scale$", (Part(r"blk.\1.ffn_down_exps.scale"),)),
    Rule(rf"{_WHERE}experts\.gate_up_proj$", (Part(r"blk.\1.ffn_gate_up_exps.weight"),)),
    Rule(rf"{_WHERE}experts\.down_proj$", (Part(r"blk.\1.ffn_down_exps.weight"),)),
)


def _slides(config: Config, layer: int) -> bool:
    return config["layer_types"][layer] == "sliding_attention"


def _layer_types(config: Config) -> list[str]:
    """What the class fills in: every sixth layer attends to everything, and the last one."""
    return [*keys.alternating(6)(config)[:-1], "full_attention"]


def _alternates(config: Config, layer: int) -> bool:
    """Whether a layer's values are its keys."""
    return bool(config["attention_k_eq_v"]) and not _slides(config, layer)


def _shares(config: Config, layer: int) -> bool:
    return layer >= config["num_hidden_layers"] - config["num_kv_shared_layers"]


def _owns(config: Config, layer: int) -> bool:
    return not _shares(config, layer)


def _by_kind(config: Config, sliding: int, full: int) -> list[int]:
    return [sliding if _slides(config, layer) else full for layer in range(config["num_hidden_layers"])]


def _of_full(config: Config, key: str) -> int | None:
    """What per_layer_config, the later way to say it, says of the first layer with full attention."""
    by_layer = config.get("per_layer_config") or {}
    full = (by_layer[number] for number in sorted(by_layer, key=int) if not _slides(config, int(number)))
    return next((one[key] for one in full if key in one), None)


def _full_heads(config: Config) -> int | None:
    """Key and value heads of full attention, where they have a number of their own."""
    found = config.get("num_global_key_value_heads") if config["attention_k_eq_v"] else None
    return _of_full(config, "num_key_value_heads") if found is None else found


def _kv_heads(config: Config) -> list[int]:
    n_heads = config["num_key_value_heads"]
    return _by_kind(config, n_heads, _full_heads(config) or n_heads)


def _inner(config: Config) -> list[int]:
    doubled = config["use_double_wide_mlp"]
    return [
        config["intermediate_size"] * (2 if doubled and _shares(config, layer) else 1)
        for layer in range(config["num_hidden_layers"])
    ]


def _with(key: str) -> Callable[[Config, int], bool]:
    return lambda config, layer: bool(config.get(key))


def _write(config: Config) -> Iterable[Item]:
    yield "attention.shared_kv_layers", UINT32, config["num_kv_shared_layers"]
    yield "embedding_length_per_layer_input", UINT32, config.get("hidden_size_per_layer_input") or 0
    n_layers = config["num_hidden_layers"]
    yield "attention.sliding_window_pattern", ARRAY, [_slides(config, layer) for layer in range(n_layers)]
    for suffix, size in (("", config["global_head_dim"]), ("_swa", config["head_dim"])):
        yield f"attention.key_length{suffix}", UINT32, size
        yield f"attention.value_length{suffix}", UINT32, size
    if config.get("moe_intermediate_size") is not None:
        yield "expert_feed_forward_length", UINT32, config["moe_intermediate_size"]
    if config["use_double_wide_mlp"]:
        yield "feed_forward_length", ARRAY, _inner(config)
    if _full_heads(config) is not None:
        yield "attention.head_count_kv", ARRAY, _kv_heads(config)
    sliding = config["rope_parameters"].get("sliding_attention", {})
    yield "rope.dimension_count", UINT32, config["global_head_dim"]
    yield (
        "rope.dimension_count_swa",
        UINT32,
        int(config["head_dim"] * sliding.get("partial_rotary_factor", 1)),
    )


def _read(facts: Facts) -> Settings:
    slides = [bool(one) for one in facts.need("attention.sliding_window_pattern")][: facts.n_layers]
    n_experts = facts.get("expert_count", 0)
    n_shared = facts.get("attention.shared_kv_layers", 0)
    full = [layer for layer, is_sliding in enumerate(slides) if not is_sliding]
    owns = [layer for layer in full if layer < facts.n_layers - n_shared]
    inner, heads = of_layers(facts, "feed_forward_length"), of_layers(facts, "attention.head_count_kv")
    of_sliding = [n for n, is_sliding in zip(heads, slides, strict=True) if is_sliding]
    found: Settings = {
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
        "head_dim": facts.need("attention.key_length_swa"),
        "global_head_dim": facts.need("attention.key_length"),
        "intermediate_size": min(inner),
        "use_double_wide_mlp": len(set(inner)) > 1,
        "num_key_value_heads": (of_sliding or heads)[0],
        "num_global_key_value_heads": heads[full[-1]] if full else None,
        "num_kv_shared_layers": n_shared,
        "attention_k_eq_v": any(not facts.has(f"blk.{layer}.attn_v.weight") for layer in owns),
        "hidden_size_per_layer_input": facts.get("embedding_length_per_layer_input", 0),
        "enable_moe_block": bool(n_experts),
        "num_experts": n_experts or None,
        "top_k_experts": facts.get("expert_used_count"),
        "moe_intermediate_size": facts.get("expert_feed_forward_length"),
    }
    if facts.has("per_layer_token_embd.weight"):
        found["vocab_size_per_layer_input"] = facts.shapes["per_layer_token_embd.weight"][1]
    return found


def _read_rope(facts: Facts) -> Settings:
    divided = facts.read("rope_freqs.weight").ravel() if facts.has("rope_freqs.weight") else np.ones(1)
    full = {
        "rope_type": "proportional",
        "rope_theta": facts.get("rope.freq_base", 1e6),
        "partial_rotary_factor": float((divided == 1).mean()),
    }
    sliding = {"rope_type": "default", "rope_theta": facts.get("rope.freq_base_swa", 10000.0)}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def _table(config: Config) -> rope.Tables:
    """Of the heads of full attention only a part turns; ggml wants that said of each frequency."""
    size = config["global_head_dim"]
    rotated = int(size * rope.of_full_attention(config).get("partial_rotary_factor", 1.0) / 2)
    values = [1.0] * rotated + [UNROTATED] * (size // 2 - rotated)
    return {"rope_freqs.weight": np.array(values, np.float32)}


KEYS_AND_VALUES = {
    "blk.attn_k.weight": "kv_heads*head_dims hidden_size",
    "blk.attn_k_norm.weight": "head_dims",
}
VALUES = {"blk.attn_v.weight": "kv_heads*head_dims hidden_size"}


FAMILY = Family(
    classes=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    arch=MODEL_ARCH.GEMMA4,
    model_type="gemma4_text",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.NORMS_AFTER,
        layout.Tensors(
            {
                "blk.attn_q.weight": "num_attention_heads*head_dims hidden_size",
                "blk.attn_q_norm.weight": "head_dims",
                "blk.attn_output.weight": "hidden_size num_attention_heads*head_dims",
                "blk.layer_output_scale.weight": "1",
                "blk.ffn_gate.weight": "inner hidden_size",
                "blk.ffn_up.weight": "inner hidden_size",
                "blk.ffn_down.weight": "hidden_size inner",
            }
        ),
        layout.Tensors(KEYS_AND_VALUES, _owns),
        layout.Tensors(VALUES, lambda config, layer: _owns(config, layer) and not _alternates(config, layer)),
        # Checkpoints hold what layers that share do not use.
        layout.Tensors(layout.optional(KEYS_AND_VALUES), _shares),
        layout.Tensors(
            layout.optional(VALUES),
            lambda config, layer: _shares(config, layer) and not _alternates(config, layer),
        ),
        layout.Tensors(
            {
                "per_layer_token_embd.weight": (
                    "vocab_size_per_layer_input num_hidden_layers*hidden_size_per_layer_input"
                ),
                "per_layer_model_proj.weight": "num_hidden_layers*hidden_size_per_layer_input hidden_size",
                "per_layer_proj_norm.weight": "hidden_size_per_layer_input",
                "blk.inp_gate.weight": "hidden_size_per_layer_input hidden_size",
                "blk.proj.weight": "hidden_size hidden_size_per_layer_input",
                "blk.post_norm.weight": "hidden_size",
            },
            _with("hidden_size_per_layer_input"),
        ),
        layout.Tensors(
            {
                "blk.ffn_gate_inp.weight": "num_experts hidden_size",
                "blk.ffn_gate_inp.scale": "hidden_size",
                "blk.ffn_gate_up_exps.weight": "num_experts 2*moe_intermediate_size hidden_size",
                "blk.ffn_down_exps.weight": "num_experts hidden_size moe_intermediate_size",
                "blk.ffn_down_exps.scale": "num_experts",
                "blk.pre_ffw_norm_2.weight": "hidden_size",
                "blk.post_ffw_norm_1.weight": "hidden_size",
                "blk.post_ffw_norm_2.weight": "hidden_size",
            },
            _with("enable_moe_block"),
        ),
    ),
    keys=(
        keys.BLOCKS,
        keys.CONTEXT,
        keys.WIDTH,
        keys.Rows(keys.INNER.write),
        keys.HEADS,
        keys.Rows(keys.KV_HEADS.write),
        keys.Rows(rope.write, _read_rope),
        keys.RMS_NORM,
        Key("num_experts", "expert_count"),
        Key("top_k_experts", "expert_used_count"),
        keys.Rows(keys.HEAD_SIZES.write),
        keys.FILE_TYPE,
        FINAL_CAP,
        keys.WINDOW,
        keys.Rows(_write, _read),
    ),
    defaults={
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "head_dim": 256,
        "hidden_size_per_layer_input": 256,
        "layer_types": _layer_types,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "num_kv_shared_layers": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "use_double_wide_mlp": False,
        "vocab_size_per_layer_input": 262144,
        "global_head_dim": lambda config: _of_full(config, "head_dim") or 512,
        "head_dims": lambda config: _by_kind(config, config["head_dim"], config["global_head_dim"]),
        "inner": _inner,
        "kv_heads": _kv_heads,
    },
    rules=RULES,
    vocabulary=tokenizer.gemma4,
    tables=_table,
)
