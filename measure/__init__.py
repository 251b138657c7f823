"""Measure what quantization lost: perplexity, KL divergence, task scores, tokens per second, reports.

``measure.model`` runs a GGUF or a Hugging Face model in torch, ``measure.perplexity`` and
``measure.divergence`` compare predictions, ``measure.logits_file`` stores them, ``measure.tasks`` scores
choices, ``measure.speed`` times llama.cpp and ``measure.report`` writes it down. Importing this package
loads no torch.
"""

from measure.errors import MeasureError

__all__ = ["MeasureError"]
