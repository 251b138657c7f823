"""What the card of the original says of itself: licence, language, what it was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FRONT = re.compile(r"^---\r?\n(.*?)\r?\n---\r?\n", re.S)
# huggingface_hub keeps a model of ORG/NAME in such a folder.
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")


@dataclass(frozen=True)
class SourceCard:
    """repository: org/name on the hub, where that is known. base_model: what the original itself was made from."""

    repository: str | None = None
    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None


def source_card(model: Path) -> SourceCard:
    """Of a directory its README.md's header, as far as it is sound; of a GGUF nothing (its metadata says it)."""
    if not model.is_dir():
        return SourceCard()
    snapshot = _SNAPSHOT.search(str(model.resolve()))
    repository = f"{snapshot['owner']}/{snapshot['name']}" if snapshot else None
    header = _header(model / "README.md")
    return SourceCard(
        repository,
        _first(header.get("base_model")),
        _first(header.get("license")),
        _first(header.get("license_name")),
        _first(header.get("license_link")),
        tuple(value for value in _listed(header.get("language")) if isinstance(value, str)),
        _first(header.get("pipeline_tag")),
    )


def _header(path: Path) -> Mapping[str, Any]:
    import yaml  # comes with huggingface_hub

    try:
        match = _FRONT.match(path.read_text(encoding="utf-8-sig"))
        found = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _first(value: Any) -> str | None:
    one = _listed(value)[0] if _listed(value) else None
    return one if isinstance(one, str) and one.strip() and "\n" not in one else None
