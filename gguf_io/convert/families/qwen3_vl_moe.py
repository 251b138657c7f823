"""Qwen3-VL with experts, the text part."""

from __future__ import annotations

import re
from dataclasses import replace

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert.families import qwen3_moe, qwen3_vl
from quantmill.gguf_io.convert.rules import Config, Part, Rule, half


def _as_stored(config: Config, match: re.Match[str]) -> bool:
    """Checkpoints hold the stacks turned round; a Qwen 3 that runs has none of vision."""
    return "vision_config" in config


TURNED_EXPERTS = (
    Rule(
        r"mlp\.experts\.gate_up_proj(\.weight)?$",
        (
            Part("mlp.experts.gate_proj.weight", columns=half(0), transpose=True),
            Part("mlp.experts.up_proj.weight", columns=half(1), transpose=True),
        ),
        when=_as_stored,
    ),
    Rule(
        r"mlp\.experts\.down_proj(\.weight)?$",
        (Part("mlp.experts.down_proj.weight", transpose=True),),
        when=_as_stored,
    ),
)

FAMILY = replace(
    qwen3_moe.FAMILY,
    classes=("Qwen3VLMoeForConditionalGeneration",),
    arch=MODEL_ARCH.QWEN3VLMOE,
    keys=(*qwen3_moe.FAMILY.keys, qwen3_vl.DEEPSTACK),
    defaults={
        **qwen3_moe.FAMILY.defaults,
        "max_position_embeddings": 128000,
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "rope_theta": 500000.0,
    },
    rules=(*TURNED_EXPERTS, *qwen3_moe.FAMILY.rules),
)
