"""The architecture families quantmill converts: one row each.

A row says which Hugging Face classes it serves, what llama.cpp calls the architecture, how tensors are cut
(rules.py) and which defaults its Hugging Face configuration class fills in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import MODEL_ARCH

from gguf_io.convert import rules
from gguf_io.convert.errors import ConversionError
from gguf_io.convert.rules import Config, Rule


@dataclass(frozen=True)
class Family:
    classes: tuple[str, ...]  # config.json: architectures[0]
    arch: MODEL_ARCH
    rules: tuple[Rule, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


# Falcon 3, SmolLM2, Yi and many more are Llamas by class.
FAMILIES = (
    Family(
        ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
        MODEL_ARCH.LLAMA,
        rules.INTERLEAVED_QK,
    ),
    Family(("MixtralForCausalLM",), MODEL_ARCH.LLAMA, rules.INTERLEAVED_QK + rules.MIXTRAL_EXPERTS),
    Family(("SmolLM3ForCausalLM",), MODEL_ARCH.SMOLLM3, rules.INTERLEAVED_QK),
    Family(("GraniteForCausalLM",), MODEL_ARCH.GRANITE, rules.INTERLEAVED_QK),
    Family(
        ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
        MODEL_ARCH.GRANITE_MOE,
        rules.INTERLEAVED_QK + rules.GRANITE_EXPERTS,
    ),
    Family(("Qwen2ForCausalLM",), MODEL_ARCH.QWEN2),
    Family(("Qwen2MoeForCausalLM",), MODEL_ARCH.QWEN2MOE, rules.STACKED_EXPERTS),
    Family(("Qwen3ForCausalLM",), MODEL_ARCH.QWEN3),
    Family(("Qwen3MoeForCausalLM",), MODEL_ARCH.QWEN3MOE, rules.STACKED_EXPERTS),
    Family(("Gemma2ForCausalLM",), MODEL_ARCH.GEMMA2, rules.NORM_PLUS_ONE + rules.tied_head_left_out(True)),
    Family(
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        MODEL_ARCH.GEMMA3,
        rules.NORM_PLUS_ONE + rules.ONLY_KNOWN_TOKENS,
    ),
    Family(("Phi3ForCausalLM",), MODEL_ARCH.PHI3),
    Family(("Olmo2ForCausalLM", "Olmo3ForCausalLM"), MODEL_ARCH.OLMO2),
    Family(("Starcoder2ForCausalLM",), MODEL_ARCH.STARCODER2),
    Family(("GptOssForCausalLM",), MODEL_ARCH.GPT_OSS, rules.GPT_OSS),
    Family(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), MODEL_ARCH.DEEPSEEK2, rules.DEEPSEEK),
    Family(("Glm4ForCausalLM",), MODEL_ARCH.GLM4),
    Family(("Exaone4ForCausalLM",), MODEL_ARCH.EXAONE4),
    Family(
        ("Cohere2ForCausalLM",), MODEL_ARCH.COHERE2, rules.ZERO_BIAS_LEFT_OUT + rules.tied_head_left_out(True)
    ),
)

SUPPORTED = tuple(sorted(name for family in FAMILIES for name in family.classes))


def family_of(config: Config) -> Family:
    """The family of a config.json. Raises ConversionError for an architecture that is not in the table."""
    names = (config.get("text_config") or {}).get("architectures") or config.get("architectures")
    if not names:
        raise ConversionError("config.json names no architecture (key 'architectures')")
    for family in FAMILIES:
        if names[0] in family.classes:
            return family
    raise ConversionError(
        f"architecture {names[0]} is not supported. Supported: {', '.join(SUPPORTED)}. "
        "Convert it with llama.cpp's convert_hf_to_gguf.py and give quantmill the GGUF."
    )
