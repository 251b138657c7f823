"""Which of llama.cpp's pre-tokenizers splits text as this tokenizer does (`tokenizer.ggml.pre`).

llama.cpp knows tokenizers by the hash of the token ids of a probe text. That covers published vocabularies; a
vocabulary that was extended or trained anew has another hash. Then the definition in tokenizer.json decides:
it must be, character for character, one of the table's definitions, and it must split the probe text into the
pieces recorded for it. Everything else is refused, never guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer

from quantmill.gguf_io import pretokenizers
from quantmill.gguf_io.convert import tokenizer_files
from quantmill.gguf_io.convert.tokenizer_json import TokenizerFiles, content
from quantmill.gguf_io.convert.vocabulary import ids_of
from quantmill.gguf_io.errors import GGUFError


def recognise(files: TokenizerFiles, tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises GGUFError when neither hash nor definition is known."""
    hashes = [_digest(ids) for ids in _probe_ids(files, tokenizer, pretokenizers.probe())]
    for found in hashes:
        if found in pretokenizers.hashes():
            return pretokenizers.hashes()[found]
    definition = tokenizer_files.definition(files)
    steps = list(split_steps(definition.get("pre_tokenizer")))
    ignore_merges = bool((definition.get("model") or {}).get("ignore_merges"))
    for known in pretokenizers.definitions():
        if known.steps == steps and known.ignore_merges == ignore_merges:
            if probe_digest(tokenizer) != known.pieces:
                raise GGUFError(
                    f"{files.path('tokenizer.json')}: defined like {known.name}, yet splits the probe text otherwise"
                )
            return known.name
    raise GGUFError(
        f"{files.path('tokenizer.json')}: its pre-tokenizer is none that llama.cpp knows (probe hash {hashes[0]}). "
        "Convert it with a llama.cpp that knows it and give quantmill the GGUF."
    )


def of_words(files: TokenizerFiles, tokenizer: Tokenizer) -> str:
    """llama.cpp's name of a WordPiece vocabulary's pre-tokenizer: by hash; llama.cpp splits all of them as BERT does.

    Raises GGUFError where it would not: where text is split otherwise.
    """
    for ids in _probe_ids(files, tokenizer, pretokenizers.probe()):
        if _digest(ids) in pretokenizers.hashes():
            return pretokenizers.hashes()[_digest(ids)]
    steps = list(split_steps(tokenizer_files.definition(files).get("pre_tokenizer")))
    if [kind for kind, *_ in steps] != ["BertPreTokenizer"]:
        raise GGUFError(
            f"{files.path('tokenizer.json')}: splits text by {steps}; llama.cpp splits words as BERT does"
        )
    return "bert-bge"


def split_steps(definition: Mapping[str, Any] | None) -> Iterator[list[Any]]:
    """A pre_tokenizer of tokenizer.json as a flat list of what it does: comparable, without its defaults."""
    if not definition:
        return
    kind = definition.get("type")
    if kind == "Sequence":
        for part in definition.get("pretokenizers", []):
            yield from split_steps(part)
    elif kind == "Split":
        pattern = definition.get("pattern", {})
        text = pattern.get("Regex", pattern.get("String"))
        yield ["Split", text, definition.get("behavior"), bool(definition.get("invert"))]
    elif kind == "Digits":
        yield ["Digits", bool(definition.get("individual_digits"))]
    elif kind == "ByteLevel":
        yield ["ByteLevel", bool(definition.get("add_prefix_space")), definition.get("use_regex", True)]
    else:
        yield [kind, json.dumps(definition, sort_keys=True)]


def probe_digest(tokenizer: Tokenizer) -> str:
    """sha256 of the pieces the probe text is split into; independent of the vocabulary."""
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(pretokenizers.probe())
    return _digest([text for text, _ in pieces])


def _probe_ids(files: TokenizerFiles, tokenizer: Tokenizer, probe: str) -> Iterator[list[int]]:
    """The ids as Hugging Face's tokenizer gives them now or gave them when the hash was recorded: with what the
    post-processor adds, with the tokens tokenizer_config.json wants added, and bare."""
    yield ids_of(files, tokenizer, probe, add_special_tokens=True)
    bare = ids_of(files, tokenizer, probe)
    settings = files.settings
    first, last = (_id_if_added(tokenizer, settings, kind) for kind in ("bos", "eos"))
    yield [*first, *bare, *last]
    yield bare


def _id_if_added(tokenizer: Tokenizer, settings: Mapping[str, Any], kind: str) -> list[int]:
    text = content(settings.get(f"{kind}_token"))
    found = tokenizer.token_to_id(text) if settings.get(f"add_{kind}_token") and text else None
    return [] if found is None else [found]


def _digest(items: list[Any]) -> str:
    return hashlib.sha256(str(items).encode()).hexdigest()
