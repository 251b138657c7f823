"""What a model sees of chunks of a text: its BOS in the first place, and no token that it does not know."""

from __future__ import annotations

import numpy as np
import torch

from quantmill.models.errors import ModelError


def seen_ids(chunks: np.ndarray, first: int | None) -> torch.Tensor:
    """chunks [n_seq, n_ctx] → i64, with the token `first` (None: none) in the place of each chunk's first."""
    ids = torch.from_numpy(chunks.astype(np.int64))
    if first is not None:
        ids[:, 0] = first
    return ids


def require_known(chunks: np.ndarray, first: int | None, n_vocab: int) -> None:
    """Raises ModelError for a token outside the vocabulary, of chunks or their `first`."""
    largest = max(int(chunks.max(initial=0)), first or 0)
    if largest >= n_vocab:
        raise ModelError(
            f"token {largest} of the text is outside the model's vocabulary of {n_vocab}; the tokenizer belongs to "
            "another model"
        )
