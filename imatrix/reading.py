"""Calibration texts of any kind, as a command is given them, → chunks of a loaded model's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantmill.imatrix import chat
from quantmill.imatrix.text import Cutting, Render, Text, chunks_of, read_conversations, read_text

if TYPE_CHECKING:
    from quantmill.models.model import LoadedModel
    from quantmill.models.tokenizer import Tokenizer


def read_texts(texts: Sequence[Text]) -> dict[Path, str]:
    """What is in the files, to be read before a model is loaded for minutes. Raises as `read_text` does."""
    return {text.path: read_text(text.path) for text in texts}


def read_chunks(
    texts: Sequence[Text],
    plain: Mapping[Path, str],
    cutting: Cutting,
    loaded: LoadedModel,
    parse_special: bool = False,
    tokenizer_directory: Path | None = None,
) -> np.ndarray:
    """[n_chunk, n_ctx] i32. plain: as `read_texts` gives it; a .jsonl file holds conversations, which the model's
    chat template renders (or that of `tokenizer_directory`).

    Raises ImatrixError for a text that is too short, not UTF-8 or not what its suffix says.
    """
    return chunks_of(
        read_tokens(
            texts, plain, loaded.tokenizer, lambda: _renderer(loaded, tokenizer_directory), parse_special
        ),
        cutting,
    )


def read_tokens(
    texts: Sequence[Text],
    plain: Mapping[Path, str],
    tokenizer: Tokenizer,
    renderer: Callable[[], Render],
    parse_special: bool = False,
) -> list[tuple[Text, list[int]]]:
    """The tokens of every text. renderer: called when there is a .jsonl file, which holds conversations."""
    render: Render | None = None
    tokens = []
    for text in texts:
        if text.path.suffix == ".jsonl":
            render = render or renderer()
            rendered = read_conversations(text.path, render)
            tokens.append((text, tokenizer.encode(rendered, add_special=False, parse_special=True)))
        else:
            tokens.append((text, tokenizer.encode(plain[text.path], parse_special=parse_special)))
    return tokens


def _renderer(loaded: LoadedModel, tokenizer_directory: Path | None) -> Render:
    directory = tokenizer_directory or (loaded.path if loaded.path.is_dir() else None)
    if directory is not None:
        return chat.from_directory(directory)
    assert loaded.source is not None
    return chat.from_metadata(loaded.source.metadata, str(loaded.path))
