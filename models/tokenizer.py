"""Text to tokens, as llama.cpp splits it, from a GGUF's own vocabulary or a Hugging Face directory.

Both kinds of vocabulary that causal language models ship are covered: byte-level BPE (``gpt2``) through
the tokenizers library with llama.cpp's splitting expressions, and SentencePiece (``llama``) through a port
of its bigram merge, because equal scores must be merged left to right (llama-vocab.cpp:
llm_tokenizer_bpe_session, llm_tokenizer_spm_session).
"""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from quantmill.models.errors import ModelError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type
SPACE = "▁"


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary's size, its BOS rule and its splitter.

    pieces(text, parse_special) -> token ids without BOS; bos is None where the vocabulary has none.
    """

    n_vocab: int
    add_bos: bool
    bos: int | None
    pieces: Callable[[str, bool], list[int]]

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text; BOS in front when asked for and the model wants it.

        Control tokens written out in the text stay text unless parse_special, as in llama-perplexity.
        """
        ids = self.pieces(text, parse_special)
        if add_special and self.add_bos and self.bos is not None:
            return [self.bos, *ids]
        return ids


@cache
def _pretokenizers() -> dict[str, dict[str, Any]]:
    rows = json.loads(resources.files("quantmill.models").joinpath("pretokenizers.json").read_text("utf-8"))[
        "rows"
    ]
    return {name: row for row in rows for name in row["names"]}


def _split_specials(text: str, specials: Sequence[tuple[str, int]]) -> list[str | int]:
    """Cut whole special tokens out of a text, longest first (tokenizer_st_partition)."""
    fragments: list[str | int] = [text] if text else []
    for word, token in sorted(specials, key=lambda item: -len(item[0].encode("utf-8", "surrogateescape"))):
        if word not in text:
            continue
        cut: list[str | int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                cut.append(fragment)
                continue
            for i, part in enumerate(fragment.split(word)):
                if i:
                    cut.append(token)
                if part:
                    cut.append(part)
        fragments = cut
    return fragments


def _byte_pair_encoder(
    tokens: Sequence[str], merges: Sequence[str], rules: Mapping[str, Any]
) -> Callable[[str], list[int]]:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ") if merge[:1] != " " else (" ", "", merge[2:])
        # llama.cpp keeps merges whose result is no token; they can only end in bytes again.
        if left in vocab and right in vocab and left + right in vocab:
            pairs.append((left, right))
    core = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=rules.get("ignore_merges", False)))
    split: list[Any] = [
        pre_tokenizers.Split(tokenizers.Regex(expression), behavior="isolated")
        for expression in rules["split"]
    ]
    split.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    core.pre_tokenizer = pre_tokenizers.Sequence(split)
    return lambda text: core.encode(text, add_special_tokens=False).ids


def _sentence_pieces(text: str, ids: Mapping[str, int], scores: Sequence[float]) -> list[int]:
    """Merge the neighbouring pair with the best score, leftmost first, until none is a token."""
    symbols: list[str] = list(text)
    after = list(range(1, len(symbols) + 1))
    before = list(range(-1, len(symbols) - 1))
    queue: list[tuple[float, int, int, str]] = []
    made_of: dict[str, tuple[str, str]] = {}

    def offer(left: int, right: int) -> None:
        if left < 0 or right >= len(symbols):
            return
        pair = symbols[left] + symbols[right]
        token = ids.get(pair)
        if token is not None:
            heapq.heappush(queue, (-scores[token], left, right, pair))
            made_of[pair] = (symbols[left], symbols[right])

    for i in range(1, len(symbols)):
        offer(i - 1, i)
    while queue:
        _, left, right, pair = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != len(pair):
            continue
        symbols[left], symbols[right] = pair, ""
        after[left] = after[right]
        if after[right] < len(symbols):
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])

    out: list[int] = []
    todo = [symbol for symbol in reversed(symbols) if symbol]
    while todo:
        symbol = todo.pop()
        if symbol in ids:
            out.append(ids[symbol])
        elif symbol in made_of:
            todo.extend(reversed(made_of[symbol]))
        else:
            raw = symbol.encode("utf-8", "surrogateescape")
            out.extend(ids.get(f"<0x{byte:02X}>", ids.get("<unk>", 0)) for byte in raw)
    return out


def _sentence_piece_encoder(
    tokens: Sequence[str], scores: Sequence[float], space_prefix: bool
) -> Callable[[str, bool], list[int]]:
    ids = {token: i for i, token in enumerate(tokens)}

    def encode(text: str, after_special: bool) -> list[int]:
        prefix = " " if space_prefix and after_special else ""
        return _sentence_pieces((prefix + text).replace(" ", SPACE), ids, scores)

    return encode


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer a GGUF carries. metadata: key -> MetaValue, as gguf_io reads it.

    Raises ModelError for a vocabulary kind or splitting rule that is not known here.
    """

    def value(key: str, default: Any = None) -> Any:
        return metadata[f"tokenizer.ggml.{key}"].value if f"tokenizer.ggml.{key}" in metadata else default

    kind = value("model")
    if kind is None or value("tokens") is None:
        raise ModelError(
            "the GGUF has no vocabulary (tokenizer.ggml.model); convert the model with its tokenizer"
        )
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(value("tokens"))]
    types = value("token_type", [1] * len(tokens))
    always = [(tokens[i], i) for i, t in enumerate(types) if t == USER_DEFINED]
    marked = [(tokens[i], i) for i, t in enumerate(types) if t in (UNKNOWN, CONTROL)]

    if kind == "gpt2":
        name = value("pre", "default")
        rules = _pretokenizers().get(name)
        if rules is None:
            known = ", ".join(sorted(_pretokenizers()))
            raise ModelError(
                f"tokenizer.ggml.pre = {name!r}: this splitting rule is not known; known are {known}. "
                "Give the Hugging Face directory as --tokenizer"
            )
        words = _byte_pair_encoder(tokens, value("merges", ()), rules)
        encode: Callable[[str, bool], list[int]] = lambda text, after_special: words(text)  # noqa: E731
        bos_default, add_bos = 11, rules.get("add_bos", False)
    elif kind == "llama":
        scores = list(value("scores", [0.0] * len(tokens)))
        encode = _sentence_piece_encoder(tokens, scores, value("add_space_prefix", True))
        bos_default, add_bos = 1, True
    else:
        raise ModelError(
            f"tokenizer.ggml.model = {kind!r}: only gpt2 (BPE) and llama (SentencePiece) vocabularies can be "
            "read from a GGUF; give the Hugging Face directory as --tokenizer"
        )

    def pieces(text: str, parse_special: bool) -> list[int]:
        out: list[int] = []
        after_special = True
        for fragment in _split_specials(text, always + marked if parse_special else always):
            if isinstance(fragment, int):
                out.append(fragment)
                after_special = True
            else:
                out.extend(encode(fragment, after_special))
                after_special = False
        return out

    bos = value("bos_token_id", bos_default)
    return Tokenizer(len(tokens), bool(value("add_bos_token", add_bos)), bos, pieces)


def from_directory(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory (AutoTokenizer); BOS where its own encoding adds it."""
    from transformers import AutoTokenizer

    try:
        core = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: no tokenizer could be loaded from here ({error})") from error
    core.model_max_length = (
        sys.maxsize
    )  # a text is cut into chunks later; its length is nothing to warn about
    bos = core.bos_token_id
    empty = core.encode("")
    # A tokenizer that does not know its BOS still names one when it encodes nothing.
    add_bos = bool(empty) and empty[0] == bos

    def pieces(text: str, parse_special: bool) -> list[int]:
        return core.encode(text, add_special_tokens=False, split_special_tokens=not parse_special)

    return Tokenizer(len(core), add_bos, bos, pieces)
