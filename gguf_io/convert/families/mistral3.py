"""The text part of Mistral's models that see: Mistral Small 3.1 and later, Ministral 3.

The class holds text models of two kinds. A GGUF with attention scales is run as Ministral 3, others as Mistral.
"""

from __future__ import annotations

from dataclasses import replace

from quantmill.gguf_io.convert import rope
from quantmill.gguf_io.convert.families import ministral3

FAMILY = replace(
    ministral3.FAMILY,
    classes=("Mistral3ForConditionalGeneration",),
    model_type="mistral",
    defaults={**ministral3.FAMILY.defaults, "tie_word_embeddings": True},
    keys=ministral3.with_rope(rope.ROPE),
    is_this=lambda facts: facts.get("attention.temperature_scale") is None,
    takes=lambda raw: raw.get("model_type") != "mistral4",
)
