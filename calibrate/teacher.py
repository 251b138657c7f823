"""What the original says: its final hidden states on every chunk, kept in a file, so that its weights can go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantmill.calibrate.errors import CalibrationError
from quantmill.calibrate.head import final_hidden
from quantmill.gguf_io.errors import GGUFError
from quantmill.models.workers import Tell, Workers

BATCH = 4  # chunks run together; a constant, for another would round otherwise


class HiddenStates:
    """Hidden states [n_chunk, n_ctx, n_hidden] f32 in a file, which grows chunk by chunk."""

    def __init__(self, path: Path, n_ctx: int, n_hidden: int) -> None:
        self.path, self._shape = path, (n_ctx, n_hidden)
        self._chunk_bytes = 4 * n_ctx * n_hidden

    def __len__(self) -> int:
        """How many chunks are complete."""
        return self.path.stat().st_size // self._chunk_bytes if self.path.exists() else 0

    def append(self, states: torch.Tensor) -> None:
        """states [n, n_ctx, n_hidden]. Raises GGUFError where the disk does not take them."""
        done = len(self)
        try:
            with open(self.path, "r+b" if self.path.exists() else "wb") as file:
                file.seek(done * self._chunk_bytes)
                file.write(states.float().cpu().contiguous().numpy().tobytes())
        except OSError as error:
            raise GGUFError(f"{self.path}: cannot be written: {error.strerror}") from error

    def __getitem__(self, chunk: int) -> torch.Tensor:
        """[n_ctx, n_hidden] f32."""
        with open(self.path, "rb") as file:
            file.seek(chunk * self._chunk_bytes)
            values = np.fromfile(file, np.float32, self._chunk_bytes // 4)
        return torch.from_numpy(values).view(self._shape)


def listen(
    model: Any,
    chunks: np.ndarray,
    states: HiddenStates,
    what: str,
    workers: Workers,
    advance: Callable[[int], None] = lambda chunks: None,
) -> None:
    """Fill `states` with the hidden states of chunks [n_chunk, n_ctx], going on from those that are there.

    Each of the workers runs the model on chunks of its own. Raises CalibrationError for a hidden state that is not
    finite. what: the model's name in messages.
    """
    device = model.get_input_embeddings().weight.device
    start = len(states) // BATCH * BATCH  # a batch that was cut short is done again
    advance(min(start, len(chunks)))

    def one(first: int, tell: Tell) -> torch.Tensor:
        batch = torch.from_numpy(chunks[first : first + BATCH].astype(np.int64)).to(device)
        found = final_hidden(model, batch)
        if not bool(torch.isfinite(found).all()):
            raise CalibrationError(
                f"{what}: its hidden states are not finite in chunk {first + 1} of the text"
            )
        return found

    firsts = range(start, len(chunks), BATCH) if len(states) < len(chunks) else range(0)
    with workers.ending(model):
        for first, found in zip(firsts, workers.in_order(one, firsts), strict=True):
            states.append(found[len(states) - first :])
            advance(len(found))
