"""What a model's own predictions of a text take of the memory, told before they are made."""

from __future__ import annotations

from quantmill.gguf_io import TensorSource

_MUCH = 1 << 28  # bytes of memory that are worth a word


def predictions_note(source: TensorSource, n_scored: int, what: str) -> str:
    """A line where log p of the whole vocabulary at so many places is much, "" where it is not. what: is done
    meanwhile."""
    tokens = source.metadata.value("tokenizer.ggml.tokens") or ()
    n_bytes = 4 * len(tokens) * n_scored
    if n_bytes < _MUCH:
        return ""
    return f"the model's own predictions take {n_bytes / (1 << 30):.1f} GiB of memory while {what}"
