"""Special tokens, whether BOS and EOS are added, merges and chat templates: what the tokenizer files say beside
the vocabulary.

Follows llama.cpp's reading of them (gguf-py: vocab.py: SpecialVocab), so that a converted model prompts alike.
Chat templates are stored as text and never executed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFWriter

from quantmill.gguf_io.convert.config import load_json, load_optional_json
from quantmill.gguf_io.convert.tokenizer_files import KINDS, definition, merges_txt
from quantmill.gguf_io.errors import GGUFError

Ids = Callable[[str], int | None]


@dataclass
class SpecialTokens:
    """ids: kind → token id. adds: kind → whether the tokenizer puts it around a text."""

    ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    merges: list[str] = field(default_factory=list)
    chat_template: str | list[dict[str, str]] | None = None
    normalizer: dict[str, bool] = field(default_factory=dict)

    def set_id(self, kind: str, token_id: Any, n_vocab: int | None = None) -> None:
        """The first id found for a kind stays; ids below 0 and behind the vocabulary are passed over."""
        if isinstance(token_id, int) and token_id >= 0 and (n_vocab is None or token_id < n_vocab):
            self.ids.setdefault(kind, token_id)

    def write(self, writer: GGUFWriter) -> None:
        if self.merges:
            writer.add_token_merges(self.merges)
        for kind, token_id in self.ids.items():
            getattr(writer, f"add_{kind}_token_id")(token_id)
        for kind, value in self.adds.items():
            if hasattr(writer, f"add_add_{kind}_token"):  # there is no key for adding unk, pad or mask
                getattr(writer, f"add_add_{kind}_token")(value)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)
        for key, value in self.normalizer.items():
            writer.add_bool(f"tokenizer.ggml.normalizer.{key}", value)


def load(
    directory: Path, merges: bool = False, n_vocab: int | None = None, ids: Ids | None = None
) -> SpecialTokens:
    """Read tokenizer.json, tokenizer_config.json, the chat templates, config.json and merges.txt of a model.

    ids: the id of a token, as the vocabulary has it; those in tokenizer.json are not always its own. Special tokens
    that only special_tokens_map.json or tokenizer_config.json know count where nothing else gives an id.
    """
    stored = load_optional_json(directory / "tokenizer.json")
    settings = load_optional_json(directory / "tokenizer_config.json")
    special = SpecialTokens()
    kinds = list(KINDS)
    if stored:
        if merges:
            special.merges = _merges(directory, stored.get("model", {}).get("merges"))
        _normalizer(stored.get("normalizer"), special)
        kinds = _Surroundings(special, settings, kinds).read(stored.get("post_processor"))
    if settings:
        template = settings.get("chat_template", _chat_template(directory))
        if isinstance(template, (str, list)):
            special.chat_template = template
        added = {one.get("content"): one.get("id") for one in reversed(stored.get("added_tokens") or [])}
        if ids is not None:
            added = {text: ids(text) for text in added}
        _from_settings(special, settings, kinds, added, n_vocab)
    config = load_json(directory / "config.json")
    for kind in kinds:
        token_id = config.get(f"{kind}_token_id")
        if token_id is None:
            token_id = (config.get("text_config") or {}).get(f"{kind}_token_id")
        special.set_id(kind, token_id, n_vocab)
    if ids is not None:
        known = {one.get("content") for one in stored.get("added_tokens") or []}
        known |= set((stored.get("model") or {}).get("vocab") or ())
        named = {**settings, **load_optional_json(directory / "special_tokens_map.json")}
        for kind in kinds:
            text = _text(named.get(f"{kind}_token"))
            special.set_id(kind, ids(text) if text and text not in known else None, n_vocab)
    if merges and not special.merges:
        special.merges = _merges_elsewhere(directory)
    return special


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
        text = _text(settings.get(f"{kind}_token"))
        if text is not None:
            special.set_id(kind, added.get(text), n_vocab)


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _merges(directory: Path, merges: Any) -> list[str]:
    """Merges as "left right"; a space inside a part is written as byte-level BPE writes it (Ġ)."""
    if not merges:
        return []
    if all(isinstance(merge, str) for merge in merges):
        return list(merges)
    if all(isinstance(merge, list) and len(merge) == 2 for merge in merges):
        return [" ".join(part.replace(" ", "Ġ") for part in merge) for merge in merges]
    raise GGUFError(f"{directory / 'tokenizer.json'}: merges are neither strings nor pairs")


def _merges_elsewhere(directory: Path) -> list[str]:
    if (directory / "merges.txt").is_file() or (directory / "tokenizer.json").is_file():
        return merges_txt(directory / "merges.txt")
    return _merges(directory, definition(directory)["model"]["merges"])


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


def _chat_template(directory: Path) -> Any:
    """chat_template.jinja with its named companions, or chat_template.json."""
    main = directory / "chat_template.jinja"
    if main.is_file():
        text = main.read_text(encoding="utf-8")
        named = list((directory / "additional_chat_templates").glob("*.jinja"))
        if not named:
            return text
        others = [{"name": path.stem, "template": path.read_text(encoding="utf-8")} for path in named]
        return [{"name": "default", "template": text}, *others]
    return load_optional_json(directory / "chat_template.json").get("chat_template")


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
