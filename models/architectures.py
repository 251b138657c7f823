"""GGUF metadata to the transformers configuration that computes the same function.

The reverse of the hyperparameters that conversion writes (gguf_io/convert): one row an architecture says
which transformers model runs it and which settings it needs beyond the common ones. What a GGUF does not
store, because llama.cpp has it in code (layer patterns, attention scales), is stated here with its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantmill.models.errors import ModelError
from quantmill.models.facts import Facts, Settings, rope


@dataclass(frozen=True)
class Architecture:
    """model_type: transformers' name. keys: configuration name -> metadata key, where the GGUF has it.
    fixed: settings every model of the architecture shares. extra: settings that need more than one key."""

    model_type: str
    hf_class: str
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    extra: Callable[[Facts], Settings] | None = None


COMMON = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length",
}
EXPERTS = {"num_experts_per_tok": "expert_used_count"}
QWEN_EXPERTS = EXPERTS | {
    "num_experts": "expert_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


def _every(facts: Facts, period: int) -> list[str]:
    """Layer kinds: every period-th layer is full attention, the others slide; a stored pattern wins."""
    pattern = facts.get("attention.sliding_window_pattern")
    if pattern is None or isinstance(pattern, int):
        period = pattern or period
        pattern = [(i + 1) % period != 0 for i in range(facts.n_layers)]
    return ["sliding_attention" if slides else "full_attention" for slides in pattern[: facts.n_layers]]


def _llama(facts: Facts) -> Settings:
    return {"attention_bias": facts.has("blk.0.attn_q.bias"), "mlp_bias": facts.has("blk.0.ffn_gate.bias")}


def _smollm3(facts: Facts) -> Settings:
    # src/models/smollm3.cpp: every fourth layer goes without rotary embedding
    return _llama(facts) | {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(facts.n_layers)]}


def _attention_scalar(facts: Facts, wide_layers: int) -> float:
    """Gemma's attention scale: by head size, but by embedding size in the 27B model, known by its layers."""
    if facts.n_layers == wide_layers:
        return facts.need("embedding_length") // facts.need("attention.head_count")
    return facts.need("attention.key_length")


def _gemma2(facts: Facts) -> Settings:
    return {"layer_types": _every(facts, 2), "query_pre_attn_scalar": _attention_scalar(facts, 46)}


def _gemma3(facts: Facts) -> Settings:
    sliding = {"rope_type": "default", "rope_theta": facts.get("rope.freq_base_swa", 10000.0)}
    slides = facts.get("attention.sliding_window") is not None
    return {
        "layer_types": _every(facts, 6) if slides else ["full_attention"] * facts.n_layers,
        "query_pre_attn_scalar": _attention_scalar(facts, 62),
        "rope_parameters": {"full_attention": rope(facts), "sliding_attention": sliding},
    }


def _phi3(facts: Facts) -> Settings:
    parameters = rope(facts)
    original = facts.get("rope.scaling.original_context_length", facts.need("context_length"))
    if facts.has("rope_factors_short.weight"):
        parameters |= {
            "rope_type": "longrope",
            "short_factor": facts.read("rope_factors_short.weight").ravel().tolist(),
            "long_factor": facts.read("rope_factors_long.weight").ravel().tolist(),
            "original_max_position_embeddings": original,
        }
    return {"rope_parameters": parameters, "original_max_position_embeddings": original}


def _olmo3(facts: Facts) -> Settings:
    # src/models/olmo2.cpp: layers with a window rotate unscaled
    theta = facts.get("rope.freq_base_swa", facts.get("rope.freq_base", 10000.0))
    sliding = {"rope_type": "default", "rope_theta": theta}
    return {
        "layer_types": _every(facts, 4),
        "rope_parameters": {"full_attention": rope(facts), "sliding_attention": sliding},
    }


def _exaone4(facts: Facts) -> Settings:
    # src/models/exaone4.cpp: only the model of 64 layers slides; the others rotate and see everything
    if facts.get("attention.sliding_window") is None:
        return {"sliding_window": None, "layer_types": ["full_attention"] * facts.n_layers}
    return {"layer_types": _every(facts, 4)}


def _four_slide(facts: Facts) -> Settings:
    return {"layer_types": _every(facts, 4)}


def _gpt_oss(facts: Facts) -> Settings:
    # The published models scale with unrounded YaRN limits, which GGUF has no key for.
    return {"layer_types": _every(facts, 2), "rope_parameters": rope(facts) | {"truncate": False}}


def _deepseek2(facts: Facts) -> Settings:
    rotated = facts.need("rope.dimension_count")
    settings: Settings = {
        "q_lora_rank": facts.get("attention.q_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": facts.need("attention.key_length_mla") - rotated,
        "n_routed_experts": facts.get("expert_count"),
        "head_dim": rotated,
        "num_key_value_heads": facts.need("attention.head_count"),
        "norm_topk_prob": facts.get("expert_weights_norm", False),
    }
    if facts.get("expert_group_count", 1) > 1 and facts.get("expert_gating_func") != 2:
        settings["topk_method"] = "group_limited_greedy"
    return settings


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", extra=_llama),
    "mixtral": Architecture("mixtral", "MixtralForCausalLM", EXPERTS | {"num_local_experts": "expert_count"}),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", extra=_smollm3),
    "granite": Architecture("granite", "GraniteForCausalLM", MULTIPLIERS, extra=_llama),
    "granitemoe": Architecture(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        MULTIPLIERS
        | EXPERTS
        | {
            "num_local_experts": "expert_count",
            "shared_intermediate_size": "expert_shared_feed_forward_length",
        },
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        QWEN_EXPERTS | {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
        {"norm_topk_prob": False},
    ),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", QWEN_EXPERTS, {"norm_topk_prob": True}),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            "sliding_window": "attention.sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        extra=_gemma2,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {"sliding_window": "attention.sliding_window", "final_logit_softcapping": "final_logit_softcapping"},
        extra=_gemma3,
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", extra=_phi3),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM"),
    "olmo3": Architecture(
        "olmo3", "Olmo3ForCausalLM", {"sliding_window": "attention.sliding_window"}, extra=_olmo3
    ),
    "starcoder2": Architecture(
        "starcoder2", "Starcoder2ForCausalLM", {"norm_epsilon": "attention.layer_norm_epsilon"}
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        "GptOssForCausalLM",
        EXPERTS
        | {
            "num_local_experts": "expert_count",
            "intermediate_size": "expert_feed_forward_length",
            "sliding_window": "attention.sliding_window",
        },
        extra=_gpt_oss,
    ),
    "deepseek2": Architecture(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        EXPERTS
        | {
            "kv_lora_rank": "attention.kv_lora_rank",
            "v_head_dim": "attention.value_length_mla",
            "moe_intermediate_size": "expert_feed_forward_length",
            "n_shared_experts": "expert_shared_count",
            "first_k_dense_replace": "leading_dense_block_count",
            "routed_scaling_factor": "expert_weights_scale",
            "n_group": "expert_group_count",
            "topk_group": "expert_group_used_count",
        },
        extra=_deepseek2,
    ),
    "deepseek3": Architecture("deepseek_v3", "DeepseekV3ForCausalLM"),
    "glm4": Architecture("glm4", "Glm4ForCausalLM"),
    "exaone4": Architecture(
        "exaone4", "Exaone4ForCausalLM", {"sliding_window": "attention.sliding_window"}, extra=_exaone4
    ),
    "cohere2": Architecture(
        "cohere2",
        "Cohere2ForCausalLM",
        {
            "sliding_window": "attention.sliding_window",
            "logit_scale": "logit_scale",
            "layer_norm_eps": "attention.layer_norm_epsilon",
        },
        extra=_four_slide,
    ),
}


def _row(facts: Facts) -> Architecture:
    name = facts.architecture
    if name == "llama" and facts.get("expert_count", 0):
        name = "mixtral"
    if name == "olmo2" and facts.get("attention.sliding_window") is not None:
        name = "olmo3"
    if name == "deepseek2" and facts.get("expert_gating_func") == 2:  # sigmoid: version 3
        v2, v3 = ARCHITECTURES["deepseek2"], ARCHITECTURES["deepseek3"]
        return Architecture(v3.model_type, v3.hf_class, v2.keys, v2.fixed, v2.extra)
    if name not in ARCHITECTURES:
        raise ModelError(
            f"general.architecture = {name!r}: quantmill cannot run it in torch; it runs "
            f"{', '.join(supported())}. llama.cpp's llama-perplexity may"
        )
    return ARCHITECTURES[name]


def supported() -> Iterable[str]:
    """Names of general.architecture that can be run."""
    return sorted(set(ARCHITECTURES) - {"mixtral", "olmo3", "deepseek3"})


def configuration(facts: Facts) -> Settings:
    """Keyword arguments for transformers' configuration of this GGUF, `model_type` included.

    Raises ModelError for an architecture that is not in the table or a missing metadata key.
    """
    row = _row(facts)
    if "token_embd.weight" not in facts.shapes:
        raise ModelError(
            "token_embd.weight is missing: this GGUF holds no whole model (an adapter or one shard?)"
        )
    settings: Settings = {
        "model_type": row.model_type,
        "architectures": [row.hf_class],
        "num_hidden_layers": facts.n_layers,
        "vocab_size": facts.shapes["token_embd.weight"][1],
        "tie_word_embeddings": "output.weight" not in facts.shapes,
        "rope_parameters": rope(facts),
        # Classes default to token ids of their first model, which a smaller vocabulary does not have.
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    for ours, key in (COMMON | dict(row.keys)).items():
        value = facts.get(key)
        if value is not None:
            settings[ours] = value
    if not isinstance(settings.get("intermediate_size", 0), int):
        raise ModelError(
            f"{facts.architecture}.feed_forward_length differs between layers, which transformers' "
            f"{row.hf_class} cannot express"
        )
    settings |= row.fixed
    if row.extra is not None:
        settings |= row.extra(facts)
    return settings
