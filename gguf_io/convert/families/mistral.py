"""Mistral: a Llama with other defaults. Its GGUF says llama and is run as one."""

from __future__ import annotations

from dataclasses import replace

from quantmill.gguf_io.convert.families import llama

FAMILY = replace(
    llama.FAMILY,
    classes=("MistralForCausalLM",),
    model_type="mistral",
    defaults={
        **llama.FAMILY.defaults,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
    },
    is_this=lambda facts: False,
)
