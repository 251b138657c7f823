"""Laguna: gated attention with a number of heads for each layer, experts behind dense layers."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH, ExpertGatingFuncType

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import ARRAY, FLOAT32, Item, Key
from quantmill.gguf_io.convert.rules import Config, Part, Rule

_WHERE = r"^model\.layers\.(\d+)\.mlp\."
RULES = (
    Rule(r"^model\.layers\.(\d+)\.self_attn\.g_proj\.weight$", (Part(r"blk.\1.attn_gate.weight"),)),
    Rule(rf"{_WHERE}(?:experts|gate)\.e_score_correction\.bias$", (Part(r"blk.\1.exp_probs_b.bias"),)),
    Rule(rf"{_WHERE}shared_experts?\.(gate|up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2_shexp.weight"),)),
    *rules.ordered_experts("gate", "up", "down"),
)


def _write_heads(config: Config) -> Iterable[Item]:
    yield "attention.head_count", ARRAY, config["num_attention_heads_per_layer"]


def _read(facts: Facts) -> Settings:
    heads = facts.need("attention.head_count")
    heads = [heads] * facts.n_layers if isinstance(heads, int) else [int(n) for n in heads]
    of_head = facts.shapes["blk.0.attn_gate.weight"][1] == heads[0]
    return {
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
        "gating": "per-head" if of_head else "per-element",
        "layer_types": _kinds(facts),
        **keys.read_dense(facts),
    }


def _kinds(facts: Facts) -> list[str]:
    """Every fourth layer, from the first on, attends to everything; without a window all do."""
    period = 4 if facts.get("attention.sliding_window", 0) else 1
    return ["sliding_attention" if i % period else "full_attention" for i in range(facts.n_layers)]


def _read_rope(facts: Facts) -> Settings:
    full = rope.read(facts)
    rotated = facts.get("rope.dimension_count_swa", facts.head_size)
    sliding = {
        "rope_type": "default",
        "rope_theta": facts.get("rope.freq_base_swa", full["rope_theta"]),
        "partial_rotary_factor": rotated / facts.head_size,
    }
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def _write_rotated(config: Config) -> Iterable[Item]:
    size = keys.head_dim(config)
    kinds = config["rope_parameters"]
    full = rope.of_full_attention(config)
    yield "rope.dimension_count", keys.UINT32, int(size * full.get("partial_rotary_factor", 1.0))
    if "sliding_attention" in kinds:
        factor = kinds["sliding_attention"].get("partial_rotary_factor", 1.0)
        yield "rope.dimension_count_swa", keys.UINT32, int(size * factor)


def _gate_rows(config: Config) -> list[int]:
    size = 1 if config["gating"] in (True, "per-head", "per_head") else keys.head_dim(config)
    return [heads * size for heads in config["num_attention_heads_per_layer"]]


FAMILY = Family(
    classes=("LagunaForCausalLM",),
    arch="laguna",
    model_type="laguna",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.Tensors(
            {
                "blk.attn_q.weight": "num_attention_heads_per_layer*head_dim hidden_size",
                "blk.attn_k.weight": "num_key_value_heads*head_dim hidden_size",
                "blk.attn_v.weight": "num_key_value_heads*head_dim hidden_size",
                "blk.attn_output.weight": "hidden_size num_attention_heads_per_layer*head_dim",
                "blk.attn_gate.weight": "gate_rows hidden_size",
            }
        ),
        layout.HEAD_NORMS,
        layout.Tensors(layout.FEED_FORWARD, layout.is_dense),
        layout.Tensors(
            {
                **layout.expert_tensors("num_experts", "moe_intermediate_size"),
                **layout.shared_expert("shared_expert_intermediate_size"),
                "blk.exp_probs_b.bias": "num_experts",
            },
            layout.is_sparse,
        ),
    ),
    keys=(
        *keys.SIZES,
        keys.Rows(rope.write, _read_rope),
        keys.RMS_NORM,
        *keys.experts("num_experts"),
        keys.HEAD_SIZES,
        keys.FILE_TYPE,
        keys.VOCABULARY_SIZE,
        keys.Rows(_write_heads),
        Key("sliding_window", "attention.sliding_window", nonzero=True),
        Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
        Key("shared_expert_intermediate_size", "expert_shared_feed_forward_length", needed=True),
        keys.written("expert_weights_norm", lambda config: True, keys.BOOL),
        Key("moe_routed_scaling_factor", "expert_weights_scale", FLOAT32),
        keys.written("expert_gating_func", lambda config: int(ExpertGatingFuncType.SIGMOID)),
        keys.LEADING_DENSE,
        keys.Rows(_write_rotated, _read),
    ),
    defaults={
        "gating": True,
        "head_dim": 128,
        "layer_types": lambda config: ["full_attention"] * config["num_hidden_layers"],
        "max_position_embeddings": 131072,
        "mlp_layer_types": layout.dense_first(1),
        "moe_intermediate_size": 512,
        "moe_routed_scaling_factor": 1.0,
        "num_attention_heads_per_layer": lambda config: (
            [config["num_attention_heads"]] * config["num_hidden_layers"]
        ),
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "shared_expert_intermediate_size": 512,
        "sliding_window": 512,
        "tie_word_embeddings": False,
        "gate_rows": _gate_rows,
    },
    rules=RULES,
    vocabulary=tokenizer.laguna,
    names=MODEL_ARCH.EXAONE_MOE,
)
