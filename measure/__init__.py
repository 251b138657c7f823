"""Measure what quantization lost: perplexity, KL divergence, task scores, tokens per second, reports.

``perplexity`` and ``divergence`` compare predictions, ``logits_file`` stores them, ``tasks`` scores choices, ``speed``
times llama.cpp and ``report`` writes it down. Importing this package loads no torch.
"""

from quantmill.measure.errors import MeasureError

__all__ = ["MeasureError"]
