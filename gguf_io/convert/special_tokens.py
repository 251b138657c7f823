"""Special tokens, whether BOS and EOS are added, merges and chat templates: what the tokenizer files say beside
the vocabulary.

Follows llama.cpp's reading of them (gguf-py: vocab.py: SpecialVocab), so that a converted model prompts alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFWriter

from quantmill.gguf_io.convert import chat_templates, keys
from quantmill.gguf_io.convert.tokenizer_files import definition, merges_txt
from quantmill.gguf_io.convert.tokenizer_json import KINDS, TokenizerFiles, content

Ids = Callable[[str], int | None]


@dataclass
class SpecialTokens:
    """ids: kind → token id. adds: kind → whether the tokenizer puts it around a text."""

    ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    merges: list[str] = field(default_factory=list)
    chat_templates: chat_templates.Templates = field(default_factory=dict)
    normalizer: dict[str, bool] = field(default_factory=dict)

    def set_id(self, kind: str, token_id: Any, n_vocab: int | None = None) -> None:
        """The first id found for a kind stays; ids below 0 and behind the vocabulary are passed over."""
        if isinstance(token_id, int) and token_id >= 0 and (n_vocab is None or token_id < n_vocab):
            self.ids.setdefault(kind, token_id)

    def write(self, writer: GGUFWriter) -> None:
        if self.merges:
            writer.add_token_merges(self.merges)
        for kind, token_id in self.ids.items():
            if kind != "cls":  # which GGUF has no key for; llama.cpp begins with bos
                getattr(writer, f"add_{kind}_token_id")(token_id)
        for kind, value in self.adds.items():
            if hasattr(writer, f"add_add_{kind}_token"):  # there is no key for adding unk, pad or mask
                add_flag(writer, kind, value)
        chat_templates.write(writer, self.chat_templates)
        for key, value in self.normalizer.items():
            writer.add_bool(f"tokenizer.ggml.normalizer.{key}", value)


def add_flag(writer: GGUFWriter, kind: str, value: bool) -> None:
    """Whether a special token is put around a text; said again, the later value counts in the earlier place."""
    keys.add(writer, "tokenizer.ggml", [(f"add_{kind}_token", keys.BOOL, value)])


def load(
    files: TokenizerFiles, merges: bool = False, n_vocab: int | None = None, ids: Ids | None = None
) -> SpecialTokens:
    """Read tokenizer.json, tokenizer_config.json, the chat templates, config.json and merges.txt of a model.

    ids: the id of a token, as the vocabulary has it; those in tokenizer.json are not always its own. Special tokens
    that only special_tokens_map.json or tokenizer_config.json know count where nothing else gives an id.
    """
    stored, settings = files.tokenizer, dict(files.settings)
    special = SpecialTokens()
    kinds = list(KINDS)
    if stored:
        if merges:
            special.merges = _merges((stored.get("model") or {}).get("merges"))
        _normalizer(stored.get("normalizer"), special)
        kinds = _Surroundings(special, settings, kinds).read(stored.get("post_processor"))
    if settings:
        special.chat_templates = chat_templates.read(files)
        added = {one["content"]: one["id"] for one in reversed(stored.get("added_tokens") or [])}
        if ids is not None:
            added = {text: ids(text) for text in added}
        _from_settings(special, settings, kinds, added, n_vocab)
    for kind in kinds:
        token_id = files.config.get(f"{kind}_token_id")
        if token_id is None:
            token_id = (files.config.get("text_config") or {}).get(f"{kind}_token_id")
        special.set_id(kind, token_id, n_vocab)
    if ids is not None:
        known = {one["content"] for one in stored.get("added_tokens") or []}
        known |= _texts((stored.get("model") or {}).get("vocab") or {})
        named = {**settings, **files.special}
        for kind in kinds:
            text = content(named.get(f"{kind}_token"))
            special.set_id(kind, ids(text) if text and text not in known else None, n_vocab)
    if merges and not special.merges:
        special.merges = _merges_elsewhere(files)
    return special


def _texts(vocab: dict[str, int] | list[list[Any]]) -> set[str]:
    """The tokens of a vocabulary: an object of ids, or pairs of text and score (Unigram)."""
    return set(vocab) if isinstance(vocab, dict) else {pair[0] for pair in vocab}


def _from_settings(
    special: SpecialTokens,
    settings: dict[str, Any],
    kinds: list[str],
    added: dict[str, Any],
    n_vocab: int | None,
) -> None:
    for kind in kinds:
        add = settings.get(f"add_{kind}_token")
        if isinstance(add, bool):
            special.adds.setdefault(kind, add)
        text = content(settings.get(f"{kind}_token"))
        if text is not None:
            special.set_id(kind, added.get(text), n_vocab)


def _merges(merges: list[Any] | None) -> list[str]:
    """Merges as "left right"; a space inside a part is written as byte-level BPE writes it (Ġ)."""
    return [
        merge if isinstance(merge, str) else " ".join(part.replace(" ", "Ġ") for part in merge)
        for merge in merges or ()
    ]


def _merges_elsewhere(files: TokenizerFiles) -> list[str]:
    if files.has("merges.txt") or files.has("tokenizer.json"):
        return merges_txt(files.path("merges.txt"))
    return _merges(definition(files)["model"]["merges"])


def _normalizer(normalizer: Any, special: SpecialTokens) -> None:
    if not normalizer:
        return
    kind = normalizer.get("type")
    if kind == "Sequence":
        for part in normalizer.get("normalizers", []):
            _normalizer(part, special)
    elif kind == "Lowercase":
        special.normalizer["lowercase"] = True
    elif kind == "StripAccents":
        special.normalizer["strip_accents"] = True
    elif kind == "BertNormalizer":  # null: as the other
        stated = {flag: normalizer.get(flag) for flag in ("lowercase", "strip_accents")}
        special.normalizer |= {flag: value for flag, value in stated.items() if isinstance(value, bool)}


class _Surroundings:
    """What the post-processor puts before and behind a text; corrects `settings` where it shows other tokens."""

    def __init__(self, special: SpecialTokens, settings: dict[str, Any], kinds: list[str]) -> None:
        self.adds, self.settings, self.kinds = special.adds, settings, kinds
        self.bos, self.cls = settings.get("bos_token"), settings.get("cls_token")
        self.eos, self.sep = settings.get("eos_token"), settings.get("sep_token")
        if not self.bos and self.cls:
            settings["bos_token"] = self.bos = self.cls
        if not self.eos and self.sep:
            settings["eos_token"] = self.eos = self.sep

    def read(self, post_processor: Any) -> list[str]:
        """Returns the kinds of special tokens to look for: a template may show a second end token."""
        if post_processor:
            for processor in post_processor.get("processors", [post_processor]):
                if processor.get("type") == "ByteLevel":
                    self.adds.setdefault("bos", False)
                    self.adds.setdefault("eos", False)
                elif processor.get("type") == "TemplateProcessing":
                    self._template(processor.get("single", []), processor.get("pair", []))
        return self.kinds

    def _template(self, single: list[Any], pair: list[Any]) -> None:
        first = last = None
        if len(single) > 1:
            first, last = _special(single[0]), _special(single[-1])
        if first:
            self._first(first)
        if last:
            self._last(last)
        if pair:
            between = pair[1 if first and _special(pair[0]) == first else 0 :]
            between = between[:-1] if last and between and _special(between[-1]) == last else between
            self._between(between, last)

    def _first(self, token: str) -> None:
        if not self.settings:
            self.bos = token
        elif token not in (self.bos, self.cls):
            if not self.bos:
                self.settings["bos_token"] = self.bos = token
            if not self.cls:
                self.settings["cls_token"] = self.cls = token
        self.adds["bos"] = token in (self.bos, self.cls)

    def _last(self, token: str) -> None:
        if not self.settings:
            self.eos = token
        elif token != self.eos:
            spare = next((kind for kind in ("eot", "eom") if kind not in self.kinds), None)
            if spare:
                self.kinds.append(spare)
                self.settings[f"{spare}_token"] = self.eos
            self.settings["eos_token"] = self.eos = token
        self.adds["eos"] = token == self.eos

    def _between(self, pair: list[Any], last: str | None) -> None:
        """A [separator] [end] B: whether pairs of texts get a separator."""
        if len(pair) < 3 or _sequence(pair[0]) != "A" or _sequence(pair[-1]) != "B":
            return
        middle = [_special(part) for part in pair[1:-1]]
        ends = (self.sep, self.eos)
        adds = bool(middle[0] and middle[0] in ends and not last)
        adds = adds or bool(len(middle) == 2 and middle[1] and middle[1] in ends)
        self.adds["sep"] = adds
        if adds and not self.sep and self.settings:
            self.settings["sep_token"] = self.eos


def _special(part: Any) -> str | None:
    return part.get("SpecialToken", {}).get("id")


def _sequence(part: Any) -> str | None:
    return part.get("Sequence", {}).get("id")
