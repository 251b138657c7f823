"""The JSON files of a tokenizer: each is read once, and is of the shape it must have before anything is made of it.

Optional facts of another kind than they must be (chat templates, whether a space goes first) are left out with a
warning; everything that names tokens must be right, for an id that is lost is seen only when the model answers.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from quantmill.gguf_io.convert.config import load_json, load_optional_json
from quantmill.gguf_io.errors import GGUFError

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
EXTRA = ("additional_special_tokens", "extra_special_tokens")
Warn = Callable[[str], None]


class TokenizerFiles:
    """directory: of the checkpoint. Each property raises GGUFError naming file and key; a missing file is empty."""

    def __init__(self, directory: Path, warn: Warn = lambda line: None) -> None:
        self.directory, self.warn = directory, warn

    def path(self, name: str) -> Path:
        return self.directory / name

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    @cached_property
    def tokenizer(self) -> Mapping[str, Any]:
        """tokenizer.json"""
        path = self.path("tokenizer.json")
        found = load_optional_json(path)
        check_tokenizer(path, found)
        return found

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """tokenizer_config.json"""
        path = self.path("tokenizer_config.json")
        found = load_optional_json(path)
        _check_named(path, found)
        decoder = found.get("added_tokens_decoder")
        _require(
            decoder is None or isinstance(decoder, dict), path, "added_tokens_decoder", "an object", decoder
        )
        for i, token in (decoder or {}).items():
            key = f"added_tokens_decoder.{i}"
            _require(i.isascii() and i.isdecimal(), path, key, "under a number", token)
            _require(is_token(token), path, key, "a text or an object with a content", token)
        return found

    @cached_property
    def special(self) -> Mapping[str, Any]:
        """special_tokens_map.json"""
        path = self.path("special_tokens_map.json")
        found = load_optional_json(path)
        _check_named(path, found)
        return found

    @cached_property
    def added(self) -> Mapping[str, int]:
        """added_tokens.json: text → id"""
        return self._ids("added_tokens.json", load_optional_json)

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """vocab.json: text → id. Raises OSError where there is none."""
        return self._ids("vocab.json", load_json)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json"""
        return load_json(self.path("config.json"))

    def flag(self, key: str) -> bool | None:
        """A setting of tokenizer_config.json that is true or false; None where it is not said."""
        value = self.settings.get(key)
        if value is None or isinstance(value, bool):
            return value
        self.warn(
            f"{self.path('tokenizer_config.json')}: {key} is {short(value)}, not true or false; left out"
        )
        return None

    def _ids(self, name: str, load: Callable[[Path], dict[str, Any]]) -> dict[str, int]:
        found = load(self.path(name))
        for text, i in found.items():
            _require(is_id(i), self.path(name), repr(text), "a number from 0 on", i)
        return found


def check_tokenizer(path: Path, found: Mapping[str, Any]) -> None:
    """Whether what is read of a tokenizer.json can be read. Raises GGUFError."""
    parts = ("model", "decoder", "normalizer", "pre_tokenizer", "post_processor")
    for key in parts:
        _require(
            found.get(key) is None or isinstance(found[key], dict), path, key, "an object", found.get(key)
        )
    model, normalizer = found.get("model") or {}, found.get("normalizer")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        for text, i in vocab.items():
            _require(is_id(i), path, f"model.vocab.{text}", "a number from 0 on", i)
    else:  # Unigram: pairs of text and score
        pairs = vocab is None or (isinstance(vocab, list) and all(_is_scored(pair) for pair in vocab))
        _require(pairs, path, "model.vocab", "an object of ids, or a list of text and score", vocab)
    merges = model.get("merges")
    _require(merges is None or isinstance(merges, list), path, "model.merges", "a list", merges)
    for merge in merges or ():
        _require(_is_merge(merge), path, "model.merges", 'of "left right" or two texts each', merge)
    _check_steps(path, "normalizer", "normalizers", normalizer)
    _check_steps(path, "post_processor", "processors", found.get("post_processor"))
    charsmap(path, found)
    added = found.get("added_tokens")
    _require(added is None or isinstance(added, list), path, "added_tokens", "a list", added)
    for token in added or ():
        right = isinstance(token, dict) and is_token(token) and is_id(token.get("id"))
        _require(right, path, "added_tokens", "of objects with content and id", token)


def charsmap(path: Path, found: Mapping[str, Any]) -> bytes:
    """SentencePiece's table of characters that are replaced, b"" where there is none. Raises GGUFError for one that is
    damaged, which the tokenizers package does not survive."""
    normalizer = found.get("normalizer") or {}
    for part in normalizer.get("normalizers") or [normalizer]:
        text = part.get("precompiled_charsmap")
        if text is not None:
            try:
                table = base64.b64decode(text, validate=True)
                (size,) = struct.unpack_from("<I", table)
                table[4 + size :].decode("utf-8")
            except (TypeError, ValueError, struct.error):
                size, table = 1, b""
            _require(
                size % 4 == 0 and 4 + size <= len(table),
                path,
                "precompiled_charsmap",
                "SentencePiece's table",
                text,
            )
            return table
    return b""


def content(token: Any) -> str | None:
    """Of a token as these files write it: a text, or an object with a text as its content; None of anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def is_token(value: Any) -> bool:
    return content(value) is not None


def is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _is_scored(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)


def _is_merge(merge: Any) -> bool:
    if isinstance(merge, str):
        return merge.count(" ") == 1
    return isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge)


def _check_steps(path: Path, key: str, inner: str, step: Any) -> None:
    """A normalizer or post-processor, alone or a sequence of them, with the templates of the latter."""
    if step is None:
        return
    _require(isinstance(step, dict), path, key, "an object", step)
    parts = step.get(inner, [])
    _require(isinstance(parts, list), path, f"{key}.{inner}", "a list", parts)
    for part in parts:
        _require(isinstance(part, dict), path, f"{key}.{inner}", "of objects", part)
        _check_steps(path, f"{key}.{inner}", inner, part)
    for name in ("single", "pair"):
        pieces = step.get(name, [])
        _require(isinstance(pieces, list), path, f"{key}.{name}", "a list", pieces)
        for piece in pieces:
            _require(
                _is_piece(piece),
                path,
                f"{key}.{name}",
                "of SpecialToken and Sequence, each with an id",
                piece,
            )


def _is_piece(piece: Any) -> bool:
    return isinstance(piece, dict) and all(
        isinstance(value, dict) and isinstance(value.get("id"), str) for value in piece.values()
    )


def _check_named(path: Path, found: Mapping[str, Any]) -> None:
    """Special tokens by name, which may be anything (what is no token names none), and lists of more."""
    for key in EXTRA:
        extra = found.get(key) or []
        tokens: Iterable[Any] = extra.values() if isinstance(extra, dict) else extra
        _require(isinstance(extra, dict | list), path, key, "a list or an object of tokens", extra)
        for token in tokens:
            _require(is_token(token), path, key, "of texts or objects with a content", token)


def _require(right: bool, path: Path, key: str, what: str, value: Any) -> None:
    if not right:
        raise GGUFError(f"{path}: {key} must be {what}, not {short(value)}")
