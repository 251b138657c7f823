"""Text files and JSONL, read alike wherever a model is run on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantmill.gguf_io.filesystem import read_whole
from quantmill.models.errors import ModelError

BYTE_ORDER_MARK = "\ufeff"


def read_text(path: Path) -> str:
    """A text as llama.cpp's --file reads it: all of it but the last line feed; a byte-order mark is text too.

    Raises ModelError when it is not UTF-8 (naming the byte), GGUFError for a device, OSError when it cannot be read.
    """
    return read_text_and_digest(path)[0]


def read_text_and_digest(path: Path) -> tuple[str, str]:
    """The text, and sha256 of the file, which may be a pipe and then cannot be read again."""
    raw = read_whole(path)
    try:
        return raw.decode("utf-8").removesuffix("\n"), hashlib.sha256(raw).hexdigest()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path}: byte {error.start} ({raw[error.start]:#04x}) is not UTF-8; convert the text, "
            "for instance with iconv"
        ) from None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of a JSONL file; lines end at line feeds alone, empty ones are passed over.

    JSON lets every other character that some call a line end stand inside a string. Raises as read_text, and
    ModelError naming the line that is not JSON.
    """
    for number, line in enumerate(read_text(path).removeprefix(BYTE_ORDER_MARK).split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            why = f"{error.msg} (character {error.colno})"
            raise ModelError(f"{path}: line {number} is not JSON: {why}") from None
        except RecursionError:
            raise ModelError(f"{path}: line {number} is nested too deep") from None
        yield number, value
