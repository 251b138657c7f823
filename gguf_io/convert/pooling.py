"""How an embedding model makes one vector of a text's: what sentence-transformers' files beside the model say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import PoolingType

from quantmill.gguf_io.convert.config import load_optional_json
from quantmill.gguf_io.convert.keys import written
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import read_regular

MODES = {
    "mean": ("pooling_mode_mean_tokens", PoolingType.MEAN),
    "cls": ("pooling_mode_cls_token", PoolingType.CLS),
    "lasttoken": ("pooling_mode_lasttoken", PoolingType.LAST),
}


def modules(directory: Path) -> Iterator[tuple[str, Path]]:
    """Kind and folder of each of sentence-transformers' modules. Raises GGUFError for a file that is not theirs."""
    path = directory / "modules.json"
    if not path.is_file():
        return
    try:
        found = json.loads(read_regular(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise GGUFError(f"{path}: not JSON ({error})") from None
    for one in found if isinstance(found, list) else [found]:
        kind, place = (one.get("type"), one.get("path")) if isinstance(one, Mapping) else (None, None)
        if not (isinstance(kind, str) and isinstance(place, str)):
            raise GGUFError(f"{path}: a module must have a type and a path, not {one!r}")
        yield kind.rpartition(".")[2], directory / place


def read(directory: Path) -> int | None:
    """llama.cpp's number of the way vectors are pooled; None where the model is no embedding model.

    Raises GGUFError for a way that llama.cpp does not know.
    """
    for kind, place in modules(directory):
        if kind.endswith("Pooling"):
            settings: Mapping[str, Any] = load_optional_json(place / "config.json")
            for mode, (flag, number) in MODES.items():
                if settings.get(flag) or settings.get("pooling_mode") == mode:
                    return int(number)
            raise GGUFError(
                f"{place / 'config.json'}: pools neither by {', by '.join(MODES)}; llama.cpp knows these"
            )
    return None


POOLING = written("pooling_type", lambda config: config.get("pooling"))
