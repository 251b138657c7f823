"""Chat templates, stored as text and never executed; in an order that follows from their names alone."""

from __future__ import annotations

from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from gguf import GGUFWriter

from quantmill.gguf_io.convert.config import load_json
from quantmill.gguf_io.convert.tokenizer_json import TokenizerFiles, short
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import open_regular

KEY = "tokenizer.chat_template"
Templates = Mapping[str, str]  # name → text; the first one's is "default"


def read(files: TokenizerFiles) -> Templates:
    """Of tokenizer_config.json, else of the files beside it; what is no template is left out with a warning."""
    stored = files.settings.get("chat_template")
    if stored is not None:
        return _checked(files, "tokenizer_config.json", stored)
    if files.has("chat_template.jinja"):
        main = _text(files, files.path("chat_template.jinja"))
        if main is None:
            return {}
        more = sorted(files.path("additional_chat_templates").glob("*.jinja"), key=lambda path: path.name)
        texts = {path.stem: _text(files, path) for path in more}
        return _named({name: text for name, text in texts.items() if text is not None}) | {"default": main}
    if files.has("chat_template.json"):
        try:
            stored = load_json(files.path("chat_template.json")).get("chat_template")
        except GGUFError as error:
            files.warn(f"{error}; the chat template is left out")
            return {}
        return {} if stored is None else _checked(files, "chat_template.json", stored)
    return {}


def resolved(files: TokenizerFiles, found: Templates) -> Templates:
    """With the text of chat_template.jinja, which tokenizer_config.json may only include."""
    path = files.path("chat_template.jinja")
    text = _text(files, path) if path.is_file() else None
    return found if text is None else {**found, "default": text}


def write(writer: GGUFWriter, templates: Templates) -> None:
    """As gguf's writer does it (add_chat_template), whose list of names is in the order of a set."""
    others = [name for name in templates if name != "default"]
    for name in others:
        writer.add_string(f"{KEY}.{name}", templates[name])
    if others:
        writer.add_array(f"{KEY}s", others)
    if "default" in templates:
        writer.add_string(KEY, templates["default"])


def _checked(files: TokenizerFiles, name: str, stored: Any) -> Templates:
    if isinstance(stored, str):
        return {"default": stored}
    found = {}
    for entry in stored if isinstance(stored, list) else [stored]:
        texts = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(texts[0], str) and isinstance(texts[1], str):
            found[texts[0]] = texts[1]
        else:
            files.warn(f"{files.path(name)}: chat_template {short(entry)} is no template; left out")
    return _named(found)


def _named(templates: Templates) -> dict[str, str]:
    """Under names that GGUF keys can hold."""
    plain = ascii_letters + digits
    renamed = {
        "".join(one if one in plain else "_" for one in name): text for name, text in templates.items()
    }
    return {name: text for name, text in renamed.items() if name}


def _text(files: TokenizerFiles, path: Path) -> str | None:
    try:
        # As a text file is read everywhere: a line ends with a line feed, whatever the system that wrote it.
        with open_regular(path) as file, TextIOWrapper(file, encoding="utf-8-sig") as text:
            return text.read()
    except UnicodeDecodeError as error:
        files.warn(f"{path}: not UTF-8 ({error.reason}); the chat template is left out")
        return None
