"""EmbeddingGemma: a Gemma 3 whose tokens all see each other; its dense modules behind are left to whoever pools."""

from __future__ import annotations

from dataclasses import replace

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import pooling
from quantmill.gguf_io.convert.families import gemma3

FAMILY = replace(
    gemma3.FAMILY,
    classes=("Gemma3TextModel",),
    arch=MODEL_ARCH.GEMMA_EMBEDDING,
    keys=(*gemma3.FAMILY.keys, pooling.POOLING),
    runs=False,
)
