"""Granite 4 Micro and Nano without Mamba: a Granite 3 whose feed-forward has the names of a shared expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, rope, rules, tokenizer
from quantmill.gguf_io.convert.families import granite_hybrid, granite_moe
from quantmill.gguf_io.convert.family import Family


def _is_dense(raw: Mapping[str, Any]) -> bool:
    return granite_hybrid.only_attends(raw) and not raw.get("num_local_experts")


FAMILY = Family(
    classes=granite_hybrid.CLASSES,
    arch=MODEL_ARCH.GRANITE,
    model_type="granite",
    tensors=(
        layout.EMBEDDING,
        *layout.HEAD,
        layout.NORMS_BEFORE,
        layout.ATTENTION,
        layout.BIASES_OF_QKV,
        *granite_moe.FEED_FORWARD,
    ),
    keys=(
        *granite_hybrid.KEYS,
        keys.written("rope.scaling.finetuned", lambda config: True, keys.BOOL),
    ),
    defaults={**granite_hybrid.DEFAULTS, "num_local_experts": 0, "num_experts_per_tok": 0},
    rules=(*rules.INTERLEAVED_QK, *granite_moe.EXPERTS),
    vocabulary=tokenizer.sentencepiece_or_bpe,
    tables=rope.llama3,
    is_this=lambda facts: False,  # granite runs it
    takes=_is_dense,
)
