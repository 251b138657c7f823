"""Text to tokens, as llama.cpp splits it, from a GGUF's own vocabulary or a Hugging Face directory.

Both kinds of vocabulary that causal language models ship are covered: byte-level BPE (``gpt2``, ``gemma4``) and
SentencePiece (``llama``). The rules are llama-vocab.cpp's; see merging.py, word_splitting.py and
token_attributes.py for theirs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantmill.gguf_io import GGUFError, pretokenizers
from quantmill.gguf_io.convert import open_checkpoint
from quantmill.models.errors import ModelError, said_of_transformers
from quantmill.models.merging import BytePairs, SentencePieces
from quantmill.models.token_attributes import WholeToken, whole_tokens

# Surrogates stand for bytes that are not UTF-8 (surrogateescape); JSON may hold others, which stand for nothing.
_NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
ASCII_SPACE = " \t\n\v\f\r"
# Where the file names no BOS, EOS or UNK (llama-vocab.cpp: load).
DEFAULT_IDS: Mapping[str, Mapping[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
}


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary's size, what it puts around a text and its splitter.

    pieces(text, parse_special) -> token ids without BOS and EOS; bos, eos are None where there are none.
    """

    n_vocab: int
    add_bos: bool
    bos: int | None
    pieces: Callable[[str, bool], list[int]]
    add_eos: bool = False
    eos: int | None = None

    @property
    def first(self) -> int | None:
        """BOS, where the model wants a text, or a chunk of one, to begin with it."""
        return self.bos if self.add_bos else None

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text; BOS in front and EOS behind when asked for and the model wants them.

        Control tokens written out in the text stay text unless parse_special, as in llama-perplexity.
        """
        ids = self.pieces(text, parse_special)
        if add_special and self.first is not None:
            ids = [self.first, *ids]
        if add_special and self.add_eos and self.eos is not None:
            ids = [*ids, self.eos]
        return ids


def _first_is(values: Sequence[Any], kind: type | tuple[type, ...]) -> bool:
    return not len(values) or isinstance(values[0], kind)


class _Values:
    """The keys tokenizer.ggml.*."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def get(self, key: str, default: Any = None) -> Any:
        found = self._metadata.get(f"tokenizer.ggml.{key}")
        return default if found is None else found.value

    def array(self, key: str, kind: type | tuple[type, ...], n: int = 0) -> Sequence[Any] | None:
        """The elements of an array of one type. Raises ModelError for another one or fewer than n."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, Sequence) or not _first_is(value, kind):
            raise ModelError(f"tokenizer.ggml.{key} is not a list of {'texts' if kind is str else 'numbers'}")
        if len(value) < n:
            raise ModelError(f"tokenizer.ggml.{key} has {len(value)} entries for {n} tokens")
        return value

    def name(self, key: str) -> str:
        value = self._metadata[key].value if key in self._metadata else ""
        return value if isinstance(value, str) else ""


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer a GGUF carries. metadata: key -> MetaValue, as gguf_io reads it.

    Raises ModelError for a vocabulary kind or splitting rule that is not known here.
    """
    values = _Values(metadata)
    kind = values.get("model")
    listed = values.array("tokens", str)
    if kind in (None, "none", "no_vocab") or listed is None:
        raise ModelError(
            "the GGUF has no vocabulary (tokenizer.ggml.model); convert the model with its tokenizer"
        )
    if not isinstance(kind, str) or kind not in DEFAULT_IDS:
        raise ModelError(
            f"tokenizer.ggml.model = {kind!r}: only gpt2 and gemma4 (BPE) and llama (SentencePiece) vocabularies "
            "can be read from a GGUF; give the Hugging Face directory as --tokenizer"
        )
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(listed)]
    types = values.array("token_type", int, len(tokens)) or [1] * len(tokens)

    def special_id(name: str) -> int | None:
        ids = (values.get(f"{name}_token_id"), DEFAULT_IDS[kind].get(name))
        return next((i for i in ids if isinstance(i, int) and 0 <= i < len(tokens)), None)

    keys = ("general.name", "general.architecture", "tokenizer.ggml.pre")
    whole = whole_tokens(tokens, types, special_id, {key: values.name(key) for key in keys})
    bos = special_id("bos")
    if kind == "llama":
        encode, add_bos = _sentence_pieces(values, tokens, special_id("unk")), True
    else:
        encode, rules = _byte_pairs(values, tokens)
        add_bos = bool(rules.add_bos)
        if not rules.bos and values.get("bos_token_id") is None:
            bos = None
    always = kind != "llama" and rules.add_bos == "always"
    return Tokenizer(
        n_vocab=len(tokens),
        add_bos=always or bool(values.get("add_bos_token", add_bos)),
        bos=bos,
        pieces=lambda text, parse_special: _pieces(text, whole, parse_special, encode),
        add_eos=bool(values.get("add_eos_token", False)),
        eos=special_id("eos"),
    )


# (text, whether it follows a special token or nothing) → ids
_Encode = Callable[[str, bool], list[int]]


def _sentence_pieces(values: _Values, tokens: Sequence[str], unknown: int | None) -> _Encode:
    ids = {token: i for i, token in enumerate(tokens)}
    scores = values.array("scores", (int, float), len(tokens)) or [0.0] * len(tokens)
    words = SentencePieces(ids, scores, unknown or 0)
    prefix = " " if values.get("add_space_prefix", True) else ""
    return lambda text, after_special: words(prefix + text if after_special else text)


def _byte_pairs(values: _Values, tokens: Sequence[str]) -> tuple[_Encode, pretokenizers.PreTokenizer]:
    name = "gemma4" if values.get("model") == "gemma4" else values.name("tokenizer.ggml.pre") or "default"
    rules = pretokenizers.by_name().get(name)
    if rules is None:
        known = ", ".join(sorted(pretokenizers.by_name()))
        raise ModelError(
            f"tokenizer.ggml.pre = {name!r}: this splitting rule is not known; known are {known}. "
            "Give the Hugging Face directory as --tokenizer"
        )
    words = BytePairs({token: i for i, token in enumerate(tokens)}, values.array("merges", str) or (), rules)
    return lambda text, after_special: words(text), rules


def _pieces(text: str, whole: Sequence[WholeToken], parse_special: bool, encode: _Encode) -> list[int]:
    out: list[int] = []
    after_special = True
    text = _NO_BYTES.sub("\ufffd", text)
    for fragment in _cut_out(text, whole, parse_special):
        if isinstance(fragment, int):
            out.append(fragment)
            after_special = True
        else:
            out.extend(encode(fragment, after_special))
            after_special = False
    return out


def _cut_out(text: str, whole: Sequence[WholeToken], parse_special: bool) -> list[str | int]:
    """Cut whole tokens out of a text, longest first (tokenizer_st_partition)."""
    fragments: list[str | int] = [text] if text else []
    absent: dict[str, bool] = {}  # vocabularies have thousands of tokens that begin alike
    for token in whole:
        start = token.text[:2]
        if start not in absent:
            absent[start] = start not in text
        if absent[start] or not (parse_special or token.always) or token.text not in text:
            continue
        cut: list[str | int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                cut.append(fragment)
            else:
                cut.extend(_cut_at(fragment, token))
        fragments = cut
    return fragments


def _cut_at(text: str, token: WholeToken) -> list[str | int]:
    out: list[str | int] = []
    at = 0
    while (found := text.find(token.text, at)) >= 0:
        left = text[at:found]
        out += [left.rstrip(ASCII_SPACE) if token.lstrip else left, token.id]
        at = found + len(token.text)
        while token.rstrip and text[at : at + 1] in (*ASCII_SPACE,):
            at += 1
    return [part for part in [*out, text[at:]] if part != ""]


def from_directory(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: as its GGUF would carry it, so that both give the same tokens.

    Where the directory is no checkpoint that can be converted, transformers' AutoTokenizer, with BOS where its own
    encoding adds it. Raises ModelError when that knows no tokenizer here either.
    """
    try:
        return from_metadata(open_checkpoint(path).metadata)
    except (GGUFError, ModelError, FileNotFoundError):
        return _auto_tokenizer(path)


def _auto_tokenizer(path: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    with said_of_transformers(f"{path}: no tokenizer could be loaded from here"):
        core = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    # A text is cut into chunks later; its length is nothing to warn about.
    core.model_max_length = sys.maxsize
    bos = core.bos_token_id
    empty = core.encode("")
    # A tokenizer that does not know its BOS still names one when it encodes nothing.
    add_bos = bool(empty) and empty[0] == bos

    def pieces(text: str, parse_special: bool) -> list[int]:
        return core.encode(text, add_special_tokens=False, split_special_tokens=not parse_special)

    return Tokenizer(len(core), add_bos, bos, pieces)
