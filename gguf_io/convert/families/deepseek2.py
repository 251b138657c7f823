"""DeepSeek V2: multi-head latent attention, absorbed as llama.cpp runs it, and experts in groups."""

from __future__ import annotations

from collections.abc import Iterable

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import FLOAT32, UINT32, Item, Key, need
from quantmill.gguf_io.convert.rules import Config, Part, Rule, head_part

# Multi-head latent attention, absorbed: K and V parts of every head become matrices of their own.
LATENT_KEYS = Rule(
    r"kv_b_proj\.weight$",
    (
        Part(
            "k_b_proj.weight",
            rows=head_part(None, "qk_nope_head_dim"),
            matrices="num_key_value_heads",
            transpose=True,
        ),
        Part(
            "v_b_proj.weight",
            rows=head_part("qk_nope_head_dim", "v_head_dim"),
            matrices="num_key_value_heads",
        ),
    ),
)
RULES = (
    *rules.tied_head_left_out(by_default=False),
    rules.LATER_LAYERS_LEFT_OUT,
    LATENT_KEYS,
    *rules.STACKED_EXPERTS,
)


def _absorbed(config: Config) -> Iterable[Item]:
    """Absorbed latent attention is attention with one large key and value head."""
    rank = need(config, "kv_lora_rank")
    yield "attention.key_length", UINT32, rank + need(config, "qk_rope_head_dim")
    yield "attention.value_length", UINT32, rank


def long_keys(config: Config) -> int:
    return need(config, "qk_nope_head_dim") + need(config, "qk_rope_head_dim")


def _log_multiplier(config: Config) -> float | None:
    mscale = rope.of_full_attention(config).get("mscale_all_dim")
    return None if mscale is None else 0.1 * mscale


def read(facts: Facts) -> Settings:
    """The heads before they are absorbed, and how experts are chosen."""
    rotated = facts.need("rope.dimension_count")
    theta = facts.get("rope.freq_base", 10000.0)
    multiplier = facts.get("rope.scaling.yarn_log_multiplier")
    # Of the two only one is in the file; where both are the same, RoPE itself has no factor.
    scales = {} if multiplier is None else dict.fromkeys(("mscale", "mscale_all_dim"), 10 * multiplier)
    settings: Settings = {
        "rope_parameters": {"rope_type": "default", "rope_theta": theta} | rope.read_scaling(facts) | scales,
        "q_lora_rank": facts.get("attention.q_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": facts.need("attention.key_length_mla") - rotated,
        "head_dim": rotated,
        "num_key_value_heads": facts.need("attention.head_count"),
        "norm_topk_prob": facts.get("expert_weights_norm", False),
    }
    if facts.get("expert_group_count", 1) > 1 and facts.get("expert_gating_func") != SIGMOID:
        settings["topk_method"] = "group_limited_greedy"
    return settings


SIGMOID = 2  # expert_gating_func: version 3
HEADS = "num_attention_heads*qk_nope_head_dim+num_attention_heads*qk_rope_head_dim"
QUERIES = {
    "blk.attn_q_a.weight": "q_lora_rank hidden_size",
    "blk.attn_q_a_norm.weight": "q_lora_rank",
    "blk.attn_q_b.weight": f"{HEADS} q_lora_rank",
}
KEYS_AND_VALUES = {
    "blk.attn_kv_a_mqa.weight": "kv_lora_rank+qk_rope_head_dim hidden_size",
    "blk.attn_kv_a_norm.weight": "kv_lora_rank",
    "blk.attn_k_b.weight": "num_attention_heads kv_lora_rank qk_nope_head_dim",
    "blk.attn_v_b.weight": "num_attention_heads v_head_dim kv_lora_rank",
    "blk.attn_output.weight": "hidden_size num_attention_heads*v_head_dim",
}
LATENT = {**QUERIES, **KEYS_AND_VALUES}
TENSORS = (
    layout.EMBEDDING,
    *layout.HEAD,
    layout.NORMS_BEFORE,
    layout.Tensors(
        {"blk.attn_q.weight": f"{HEADS} hidden_size"}, lambda config, layer: not config.get("q_lora_rank")
    ),
    layout.Tensors(
        QUERIES,
        lambda config, layer: bool(config.get("q_lora_rank")),
    ),
    layout.Tensors(KEYS_AND_VALUES),
    layout.Tensors(layout.FEED_FORWARD, layout.before_experts),
    layout.Tensors(
        {
            **layout.expert_tensors("n_routed_experts", "moe_intermediate_size"),
            **layout.shared_expert("n_shared_experts*moe_intermediate_size"),
        },
        layout.behind_dense,
    ),
)
ABSORBED = keys.Rows(_absorbed)
RANK = Key("kv_lora_rank", "attention.kv_lora_rank")
KEYS = (
    keys.BLOCKS,
    keys.CONTEXT,
    keys.WIDTH,
    keys.INNER,
    keys.HEADS,
    keys.written("attention.head_count_kv", lambda config: 1),
    keys.Rows(rope.write),
    keys.RMS_NORM,
    *keys.experts("n_routed_experts"),
    *keys.EXPERT_GROUPS,
    keys.GATE,
    ABSORBED,
    keys.FILE_TYPE,
    Key("first_k_dense_replace", "leading_dense_block_count"),
    keys.VOCABULARY_SIZE,
    Key("q_lora_rank", "attention.q_lora_rank"),
    RANK,
    keys.written("attention.key_length_mla", long_keys),
    Key("v_head_dim", "attention.value_length_mla", needed=True),
    Key("moe_intermediate_size", "expert_feed_forward_length", needed=True),
    Key("n_shared_experts", "expert_shared_count"),
    Key("routed_scaling_factor", "expert_weights_scale", FLOAT32),
    keys.written(
        "expert_weights_norm", lambda config: True if config.get("norm_topk_prob") else None, keys.BOOL
    ),
    keys.written("rope.dimension_count", lambda config: need(config, "qk_rope_head_dim")),
    keys.written("rope.scaling.yarn_log_multiplier", _log_multiplier, FLOAT32),
    keys.Rows(read=read),
)

FAMILY = Family(
    classes=("DeepseekV2ForCausalLM",),
    arch=MODEL_ARCH.DEEPSEEK2,
    model_type="deepseek_v2",
    tensors=TENSORS,
    keys=KEYS,
    defaults={
        "first_k_dense_replace": 0,
        "head_dim": lambda config: config["qk_rope_head_dim"],
        "kv_lora_rank": 512,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1407,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "v_head_dim": 128,
    },
    rules=RULES,
    is_this=lambda facts: facts.get("expert_gating_func") != SIGMOID,
)
