"""Vocabularies in tiktoken's form (base64 of a token and its rank a line) of classes that come as code with the
checkpoint: how such a class splits text and which special tokens it has is known here by its name; no code is run.

Tokens, types and merges are those of llama.cpp's converter (conversion/hunyuan.py, deepseek.py: set_vocab).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from gguf import TokenType

from quantmill.gguf_io.byte_characters import byte_characters
from quantmill.gguf_io.convert.ranks import ranks_of
from quantmill.gguf_io.convert.tokenizer_json import TokenizerFiles, content
from quantmill.gguf_io.convert.vocabulary import Vocabulary
from quantmill.gguf_io.errors import GGUFError


@dataclass(frozen=True)
class _Class:
    """file: of the ranks. pre: llama.cpp's name of how text is split. special: (files, number of ranks, size of the
    vocabulary) → the texts of the special tokens, which follow the ranks."""

    file: str
    pre: str
    special: Callable[[TokenizerFiles, int, int], list[str]]


def _kimi(files: TokenizerFiles, first: int, n: int) -> list[str]:
    """Moonshot's class names those that tokenizer_config.json has, and reserves the others."""
    named = {
        int(i): str(content(token))
        for i, token in (files.settings.get("added_tokens_decoder") or {}).items()
        if str(i).isdecimal()
    }
    return [named.get(i, f"<|reserved_token_{i}|>") for i in range(first, n)]


def _hunyuan(files: TokenizerFiles, first: int, n: int) -> list[str]:
    begun = ("endoftext", "startoftext", "bos", "eos", "pad")
    names = [*begun, *(f"extra_{i}" for i in range(n - first - len(begun)))]
    return [f"<|{name}|>" for name in names][: n - first]


_CLASSES: Mapping[str, _Class] = {
    "TikTokenTokenizer": _Class("tiktoken.model", "kimi-k2", _kimi),
    "HYTokenizer": _Class("hy.tiktoken", "hunyuan", _hunyuan),
}


@dataclass(frozen=True)
class Tiktoken:
    """pre: tokenizer.ggml.pre. merges: "left right" in the order of the ranks."""

    pre: str
    vocabulary: Vocabulary
    merges: list[str]


def read(files: TokenizerFiles, vocab_size: int) -> Tiktoken | None:
    """The vocabulary of a directory; None where its tokenizer is of another kind.

    Raises GGUFError for a file that holds no ranks, or more than config.json's vocab_size says.
    """
    known = _CLASSES.get(str(files.settings.get("tokenizer_class")))
    if known is None or files.has("tokenizer.json") or not files.has(known.file):
        return None
    ranks = ranks_of(files.path(known.file))
    if ranks is None:
        raise GGUFError(f"{files.path(known.file)}: holds no ranks of tokens in tiktoken's form")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise GGUFError(f"{files.path(known.file)}: the ranks of its tokens are not 0 to {len(ranks) - 1}")
    if len(ranks) > vocab_size:
        raise GGUFError(
            f"{files.path(known.file)}: holds {len(ranks)} tokens, config.json's vocab_size is {vocab_size}; "
            "the files are not of one model"
        )
    characters = byte_characters()

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    special = known.special(files, len(ranks), vocab_size)
    types = [int(TokenType.NORMAL)] * len(ranks) + [int(TokenType.CONTROL)] * len(special)
    by_rank = sorted(ranks, key=lambda token: ranks[token])
    vocabulary = Vocabulary([text(token) for token in by_rank] + special, types)
    merges = (_merged(ranks, token, rank) for token, rank in ranks.items() if len(token) > 1)
    return Tiktoken(
        known.pre, vocabulary, [" ".join(map(text, parts)) for parts in merges if len(parts) == 2]
    )


def _merged(ranks: Mapping[bytes, int], token: bytes, limit: int) -> list[bytes]:
    """What merging by ranks below `limit` leaves of a token: the two parts that its own merge joins."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        pairs = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        best = min(pairs)
        if best >= limit:
            break
        i = pairs.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
