"""llama.cpp's pre-tokenizers (`tokenizer.ggml.pre`): how each splits text and how a published one is recognised.

One table for both directions: conversion looks up the name of a tokenizer, running looks up the rules of a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp does for a name (llama-vocab.cpp: llama_vocab::impl::load, llm_tokenizer_bpe).

    split: expressions applied one after the other, each inside the pieces the one before left. \\p{N}, \\p{L},
    \\p{M}, \\p{P}, \\p{S} are general categories and \\p{Han} the ideographs; \\s, \\d, \\S are those of ASCII, white
    space outside ASCII counts as \\s. ignore_merges: a piece that is a token is one, whatever the merges say.
    add_bos: unless the file says otherwise, or "always". bos: whether there is one unless the file names it.
    raw: tokens are UTF-8 with <0xXX> for bytes, not GPT-2's byte characters. escape_spaces: a space is written ▁.
    whole_newlines: a run of line feeds that is a token is one.
    """

    split: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool | Literal["always"] = False
    bos: bool = True
    raw: bool = False
    escape_spaces: bool = False
    whole_newlines: bool = False


@dataclass(frozen=True)
class Definition:
    """A pre_tokenizer of tokenizer.json that `name` splits alike: its steps (convert.pretokenizer.split_steps),
    and the sha256 of the pieces it splits the probe text into."""

    name: str
    steps: list[list[Any]]
    ignore_merges: bool
    pieces: str


@cache
def _table() -> dict[str, Any]:
    return json.loads(files("quantmill.gguf_io").joinpath("pretokenizers.json").read_text(encoding="utf-8"))


@cache
def by_name() -> Mapping[str, PreTokenizer]:
    """Every name that llama.cpp knows."""
    out: dict[str, PreTokenizer] = {}
    for row in _table()["rows"]:
        facts = {key: row[key] for key in PreTokenizer.__dataclass_fields__ if key in row}
        rules = PreTokenizer(**{**facts, "split": tuple(row["split"])})
        out |= dict.fromkeys(row["names"], rules)
    return out


def probe() -> str:
    """The text whose token ids llama.cpp's converter hashes (conversion/base.py: get_vocab_base_pre)."""
    return _table()["probe"]


@cache
def hashes() -> Mapping[str, str]:
    """sha256 of the probe's token ids → name."""
    table = _table()
    named = [row.get("hashes", {}) for row in table["rows"]] + [table["not_byte_pairs"]]
    return {digest: name for group in named for name, found in group.items() for digest in found}


@cache
def definitions() -> tuple[Definition, ...]:
    return tuple(
        Definition(known["name"], known["steps"], row.get("ignore_merges", False), known["pieces"])
        for row in _table()["rows"]
        for known in row.get("definitions", ())
    )
