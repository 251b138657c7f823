"""Give tensors of a loaded GGUF other blocks: other types, other codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from quantmill.models.fill import held_blocks
from quantmill.models.model import LoadedModel
from quantmill.models.packed import Piece


class Exchange:
    """The matrices of a model that was loaded from a GGUF, by name."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._views = loaded.table.views
        self._pieces: dict[str, list[Piece]] = defaultdict(list)
        for module in loaded.model.modules():
            if isinstance(module, Piece):
                self._pieces[module.name].append(module)

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def put(self, name: str, type: str, raw: np.ndarray) -> None:
        """Stored rows u8 [n_rows, row_bytes] of `type` take the place of what the tensor holds, wherever it is used."""
        blocks, _ = held_blocks(raw, self._views[name])
        for piece in self._pieces[name]:
            piece.blocks, piece.ggml_type = blocks.to(piece.blocks.device), type

    @contextmanager
    def instead(self, name: str, type: str, raw: np.ndarray) -> Iterator[None]:
        """The same for a while."""
        before = [(piece, piece.blocks, piece.ggml_type) for piece in self._pieces[name]]
        self.put(name, type, raw)
        try:
            yield
        finally:
            for piece, blocks, old in before:
                piece.blocks, piece.ggml_type = blocks, old
