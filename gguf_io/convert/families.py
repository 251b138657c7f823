"""The architecture families quantmill converts: one row each.

A row says which Hugging Face classes it serves, what llama.cpp calls the architecture, how tensors are cut
(rules.py), which metadata is written (hyperparameters.py, rope.py), what its vocabulary wants besides the
common (tokenizer.py), and which defaults its Hugging Face configuration class fills in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter

from quantmill.gguf_io.convert import defaults, rope, rules, tokenizer
from quantmill.gguf_io.convert import hyperparameters as keys
from quantmill.gguf_io.convert.rules import Config, Rule
from quantmill.gguf_io.errors import GGUFError


@dataclass(frozen=True)
class Family:
    """defaults: config key → value or function of the config, filled in where the key is missing (config.py)."""

    classes: tuple[str, ...]  # config.json: architectures[0]
    arch: MODEL_ARCH
    rules: tuple[Rule, ...] = ()
    keys: keys.KeyWriter = keys.common
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rope: Callable[[GGUFWriter, Config], rope.Tables] = rope.no_tables
    tokenizer: tokenizer.TokenizerWriter = tokenizer.bpe


# Falcon 3, SmolLM2, Yi and many more are Llamas by class.
FAMILIES = (
    Family(
        ("LlamaForCausalLM", "LLaMAForCausalLM"),
        MODEL_ARCH.LLAMA,
        rules.INTERLEAVED_QK,
        keys.llama,
        defaults.LLAMA_WITH_HEADS,
        rope.llama3,
        tokenizer=tokenizer.llama,
    ),
    Family(
        ("MistralForCausalLM",),
        MODEL_ARCH.LLAMA,
        rules.INTERLEAVED_QK,
        keys.llama,
        defaults.MISTRAL,
        rope.llama3,
        tokenizer=tokenizer.llama,
    ),
    Family(
        ("MixtralForCausalLM",),
        MODEL_ARCH.LLAMA,
        rules.INTERLEAVED_QK + rules.MIXTRAL_EXPERTS,
        keys.llama,
        defaults.MIXTRAL,
        rope.llama3,
        tokenizer=tokenizer.llama,
    ),
    Family(
        ("SmolLM3ForCausalLM",),
        MODEL_ARCH.SMOLLM3,
        rules.INTERLEAVED_QK,
        keys.llama,
        {
            **defaults.LLAMA,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
        },
        rope.llama3,
        tokenizer=tokenizer.llama,
    ),
    Family(
        ("GraniteForCausalLM",),
        MODEL_ARCH.GRANITE,
        rules.INTERLEAVED_QK,
        keys.granite,
        defaults.LLAMA,
        rope.llama3,
        tokenizer=tokenizer.llama,
    ),
    Family(
        ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
        MODEL_ARCH.GRANITE_MOE,
        rules.INTERLEAVED_QK + rules.GRANITE_EXPERTS,
        keys.granite,
        {**defaults.LLAMA, "num_local_experts": 8, "num_experts_per_tok": 2},
        rope.llama3,
        tokenizer=tokenizer.llama,
    ),
    Family(
        ("Qwen2ForCausalLM",),
        MODEL_ARCH.QWEN2,
        defaults=defaults.QWEN,
        tokenizer=tokenizer.sentencepiece_or_bpe,
    ),
    Family(
        ("Qwen2MoeForCausalLM",),
        MODEL_ARCH.QWEN2MOE,
        rules.STACKED_EXPERTS,
        keys.qwen_moe,
        {
            **defaults.QWEN,
            "num_key_value_heads": 16,
            "moe_intermediate_size": 1408,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "shared_expert_intermediate_size": 5632,
        },
    ),
    Family(
        ("Qwen3ForCausalLM",),
        MODEL_ARCH.QWEN3,
        defaults={**defaults.QWEN, "head_dim": 128},
        tokenizer=tokenizer.sentencepiece_or_bpe,
    ),
    Family(
        ("Qwen3MoeForCausalLM",),
        MODEL_ARCH.QWEN3MOE,
        rules.STACKED_EXPERTS,
        keys.qwen_moe,
        {
            **defaults.QWEN,
            "moe_intermediate_size": 768,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    Family(
        ("Gemma2ForCausalLM",),
        MODEL_ARCH.GEMMA2,
        rules.NORM_PLUS_ONE + rules.tied_head_left_out(True),
        keys.gemma2,
        {
            **defaults.GEMMA,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        tokenizer=tokenizer.gemma2,
    ),
    Family(
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        MODEL_ARCH.GEMMA3,
        rules.NORM_PLUS_ONE + rules.ONLY_KNOWN_TOKENS,
        keys.gemma3,
        defaults.GEMMA3,
        tokenizer=tokenizer.gemma3,
    ),
    Family(
        ("Phi3ForCausalLM",),
        MODEL_ARCH.PHI3,
        (),
        keys.phi3,
        {
            **defaults.LLAMA,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        rope.phi3,
        tokenizer=tokenizer.phi3,
    ),
    Family(("Olmo2ForCausalLM",), MODEL_ARCH.OLMO2, (), keys.olmo, defaults.OLMO),
    Family(
        ("Olmo3ForCausalLM",),
        MODEL_ARCH.OLMO2,
        (),
        keys.olmo,
        {
            **defaults.OLMO,
            "rope_theta": 500000.0,
            "rope_local_base_freq": lambda config: config["rope_theta"],
            "sliding_window": 4096,
            "layer_types": defaults.alternating(4),
        },
    ),
    Family(
        ("Starcoder2ForCausalLM",),
        MODEL_ARCH.STARCODER2,
        defaults={
            "max_position_embeddings": 4096,
            "num_key_value_heads": 2,
            "norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
        },
    ),
    Family(
        ("GptOssForCausalLM",),
        MODEL_ARCH.GPT_OSS,
        rules.GPT_OSS,
        keys.gpt_oss,
        defaults.GPT_OSS,
    ),
    Family(
        ("DeepseekV2ForCausalLM",), MODEL_ARCH.DEEPSEEK2, rules.DEEPSEEK, keys.deepseek, defaults.DEEPSEEK
    ),
    Family(
        ("DeepseekV3ForCausalLM",),
        MODEL_ARCH.DEEPSEEK2,
        rules.DEEPSEEK,
        keys.deepseek,
        {
            **defaults.DEEPSEEK,
            "first_k_dense_replace": 3,
            "max_position_embeddings": 4096,
            "num_key_value_heads": 128,
            "moe_intermediate_size": 2048,
            "n_group": 8,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 8,
            "routed_scaling_factor": 2.5,
            "topk_group": 4,
            "scoring_func": "sigmoid",  # the class knows no other; llama.cpp must be told
        },
    ),
    Family(
        ("Glm4ForCausalLM",),
        MODEL_ARCH.GLM4,
        (),
        keys.glm4,
        {
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1.5625e-07,
            "rope_theta": 10000.0,
        },
        tokenizer=tokenizer.glm4,
    ),
    Family(
        ("Exaone4ForCausalLM",),
        MODEL_ARCH.EXAONE4,
        (),
        keys.exaone4,
        {
            **defaults.LLAMA,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "layer_types": defaults.alternating(4),
        },
        rope.llama3,
    ),
    Family(
        ("Cohere2ForCausalLM",),
        MODEL_ARCH.COHERE2,
        rules.ZERO_BIAS_LEFT_OUT + rules.tied_head_left_out(True),
        keys.cohere2,
        {
            "head_dim": defaults.head_dim,
            "layer_norm_eps": 1e-5,
            "logit_scale": 0.0625,
            "max_position_embeddings": 8192,
            "rope_theta": 10000.0,
            "rotary_pct": 1.0,
            "sliding_window": 4096,
            "layer_types": defaults.alternating(4),
            "tie_word_embeddings": True,
        },
    ),
)

SUPPORTED = tuple(sorted(name for family in FAMILIES for name in family.classes))


def family_of(config: Config) -> Family:
    """The family of a config.json. Raises GGUFError for an architecture that is not in the table."""
    inner = config.get("text_config")
    names = (inner.get("architectures") if isinstance(inner, Mapping) else None) or config.get(
        "architectures"
    )
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise GGUFError("config.json names no architecture (key 'architectures')")
    for family in FAMILIES:
        if names[0] in family.classes:
            return family
    raise GGUFError(
        f"architecture {names[0]} is not supported. Supported: {', '.join(SUPPORTED)}. "
        "Convert it with llama.cpp's convert_hf_to_gguf.py and give quantmill the GGUF."
    )
