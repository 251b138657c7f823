"""Text that a model writes itself: sampled token by token, from fixed seeds."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gguf import TokenType

from quantmill.gguf_io import Metadata
from quantmill.gguf_io.byte_characters import byte_characters
from quantmill.models.model import LoadedModel


def sample(
    loaded: LoadedModel, start: Sequence[int], seeds: Sequence[Sequence[int]], temperature: float, n: int
) -> np.ndarray:
    """n tokens behind `start` for each seed: [len(seeds), n] i32. On one thread of torch, the same seeds give the same.

    One random number a token; the probabilities are those at the temperature, nothing is cut off.
    """
    draws = np.stack([np.random.default_rng(seed).random(n) for seed in seeds])
    ids = torch.tensor([list(start)] * len(seeds), device=loaded.device)
    out = np.empty((len(seeds), n), np.int32)
    # Versions of transformers differ in what they call it.
    cache = next(name for name in ("cache", "past_key_values") if name in _arguments(loaded))
    past: Any = None
    with torch.no_grad():
        for i in range(n):
            found = loaded.model(input_ids=ids, use_cache=True, **{cache: past})
            past = getattr(found, cache)
            logits = found.logits[:, -1].double().cpu() / temperature
            steps = torch.softmax(logits, dim=-1).cumsum(dim=-1).numpy()
            chosen = [
                min(int(np.searchsorted(row, draw * row[-1], side="right")), len(row) - 1)
                for row, draw in zip(steps, draws[:, i], strict=True)
            ]
            out[:, i] = chosen
            ids = torch.from_numpy(out[:, i : i + 1].astype(np.int64)).to(loaded.device)
    return out


def _arguments(loaded: LoadedModel) -> Sequence[str]:
    return list(inspect.signature(loaded.model.forward).parameters)


def text_of_tokens(metadata: Metadata, ids: Sequence[int]) -> str:
    """The text of tokens by a GGUF's vocabulary; control tokens are left out, bytes that are no UTF-8 replaced."""
    tokens = metadata["tokenizer.ggml.tokens"].value
    types = metadata.value("tokenizer.ggml.token_type")
    pieces = metadata.value("tokenizer.ggml.model") in ("gpt2",)
    raw = bytearray()
    for i in ids:
        kind = TokenType.NORMAL if types is None else types[i]
        if kind in (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED):
            continue
        token = str(tokens[i])
        if kind == TokenType.BYTE:
            raw.append(int(token[3:-1], 16))  # <0x0A>
        elif pieces and kind == TokenType.NORMAL:
            raw += bytes(_BYTE_OF[sign] for sign in token if sign in _BYTE_OF)
        else:
            raw += token.replace("▁", " ").encode()
    return raw.decode("utf-8", errors="replace")


_BYTE_OF = {sign: byte for byte, sign in enumerate(byte_characters())}
