"""A model's tensors on packed blocks whose scales can move: the relative change of every scale, and the gradient of it.

The blocks always hold what has been trained so far, each scale rounded to its format, so that what is trained is what
the file will be; the gradient passes as if nothing were rounded (straight through).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from quantmill.calibrate.codes import MovingCodes
from quantmill.calibrate.replay import Replay
from quantmill.calibrate.strands import Strands
from quantmill.gguf_io.convert.rules import Index
from quantmill.models.packed import Piece, decode
from quantmill.models.workers import Workers, tiles
from quantmill.qkernels import get_type
from quantmill.qkernels.pulls import of_groups
from quantmill.qkernels.scales import gradient, group_of, is_trainable, n_values, read_scales, write_scales

FEW_TOKENS = 256  # an expert that was trained on fewer stays as it was

Heard = tuple[torch.Tensor, torch.Tensor]  # sums of products with the weights, and of themselves, by groups


class Scratch(threading.local):
    """Memory of each thread for what it needs a moment, used again: fresh memory costs a page fault for 4 KiB."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def of(self, what: str, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """Contiguous, of the dtype and on the device of `like`; what was in it is gone."""
        kept, size = self._kept.get(what), math.prod(shape)
        if kept is None or kept.dtype != like.dtype or kept.device != like.device or len(kept) < size:
            kept = self._kept[what] = like.new_empty(size)
        return kept[:size].view(shape)


@dataclass(frozen=True)
class Way:
    """How products are computed, and on which device. dtype: theirs; everything else is float32."""

    dtype: torch.dtype
    workers: Workers
    strands: Strands
    device: torch.device
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def replay(self) -> Replay:
        """That of the strand whose thread asks."""
        return self.strands.replay


class ScaledPiece:
    """One GGUF tensor. first, change, and of each strand (strands.py) grads: [n_matrices, n_rows, n_blocks, n_values]
    f32, none where nothing moves; values are the scales of a block, and those of its groups where these move too.

    The rows are the Piece's, which fill.py has put into Hugging Face order where the file has another. The blocks, and
    all that is kept of them, lie where the Piece has them; what is decoded lies on `device`, where products are made.
    rates: [n_values] f32, the highest relative change a step. tokens: [n_matrices], inputs each was trained on.
    codes: where these move too, and code_rate, how far the usual gradient of a step moves the wish of one.
    """

    first: torch.Tensor | None = None
    change: torch.Tensor | None = None
    grads: Sequence[torch.Tensor] = ()
    rates: torch.Tensor | None = None
    codes: MovingCodes | None = None
    code_rate = 0.0
    _within = False

    def __init__(self, piece: Piece, device: torch.device) -> None:
        self.piece, self.device = piece, device
        self.tokens = torch.zeros(len(piece.blocks), dtype=torch.int64)
        self._counting = threading.Lock()

    @property
    def name(self) -> str:
        return self.piece.name

    @property
    def type(self) -> str:
        return self.piece.ggml_type

    @property
    def moves(self) -> bool:
        return self.change is not None

    def start(self, scales: float, sub_scales: float, n_strands: int) -> None:
        """Let the scales move, from where they are, at such rates."""
        assert is_trainable(self.type)
        blocks = self.piece.blocks.clone()  # of their own: what was read is a view of the file
        visits = self.device.type != "cpu" and blocks.device.type == "cpu"
        # pinned: a GPU reads them several times as fast
        self.piece.blocks = blocks.pin_memory() if visits else blocks
        self._within = sub_scales > 0
        self.first = read_scales(self.piece.blocks, self.type, self._within)
        self.change = torch.zeros_like(self.first)
        self.grads = [torch.zeros_like(self.first) for _ in range(n_strands)]
        n_scales = len(get_type(self.type).scales)
        rates = [scales] * n_scales + [sub_scales] * (n_values(self.type, self._within) - n_scales)
        self.rates = torch.tensor(rates, dtype=torch.float32, device=self.first.device)

    def decoded(self, matrix: int, rows: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of one matrix as they are now: [n_rows, n_cols] dtype."""
        found = decode(self._visiting(matrix, rows), self.type, dtype)
        return found if self.piece.factors is None else found * self.piece.factors[matrix]

    def _visiting(self, matrix: int, rows: slice | torch.Tensor) -> torch.Tensor:
        """Blocks of some rows, where products are made."""
        found = self.piece.blocks[matrix][self._here(rows)]
        return found if found.device == self.device else found.to(self.device, non_blocking=True)

    def _here(self, rows: slice | torch.Tensor) -> slice | torch.Tensor:
        """Rows as what lies beside the blocks can be indexed with."""
        return rows if isinstance(rows, slice) else rows.to(self.piece.blocks.device)

    def decode_into(self, matrix: int, rows: slice, out: torch.Tensor) -> None:
        """The same into contiguous memory [n_rows, n_cols]."""
        decode(self._visiting(matrix, rows), self.type, out.dtype, out)
        if self.piece.factors is not None:
            out.mul_(self.piece.factors[matrix])

    def heard(
        self, matrix: int, rows: slice | torch.Tensor, made: torch.Tensor, weights: torch.Tensor
    ) -> Heard:
        """What dL/dW [n_rows, n_cols] of some rows, each named once, says of their scales, for `add`.

        Codes that move take what it says of them. made: what `decoded` gave for them, in the dtype of the weights.
        """
        products, sums, squares = of_groups(weights, made, group_of(self.type))
        if self.codes is not None:
            assert isinstance(rows, slice)
            free = int(self.tokens[matrix]) >= FEW_TOKENS or len(self.tokens) == 1
            here = self.piece.blocks.device
            self.codes.pull(matrix, rows, weights.to(here), squares.to(here), self.code_rate, free)
        return products, sums

    def add(self, strand: int, matrix: int, rows: slice | torch.Tensor, heard: Sequence[Heard]) -> None:
        """Add to a strand's gradient what was heard of these rows, part by part; nobody hears more of the matrix's
        codes from the same product."""
        here, rows = self.piece.blocks.device, self._here(rows)
        products, sums = (torch.cat(parts).to(here) for parts in zip(*heard, strict=True))
        found = gradient(self.piece.blocks[matrix][rows], self.type, products, sums, self._within)
        self.grads[strand][matrix][rows] += found
        if self.codes is not None:
            self.codes.heard(matrix)

    def trained_on(self, matrix: int, n_tokens: int) -> None:
        with self._counting:  # all strands come to the head
            self.tokens[matrix] += n_tokens

    def gradient(self, strand: int) -> torch.Tensor:
        """What is to be used up; `forget` it then."""
        return self.grads[strand]

    def forget(self, strand: int) -> None:
        self.grads[strand].zero_()

    def pieces_of_work(self) -> list[tuple[int, slice]]:
        """Matrices and rows, in parts that can be written side by side."""
        n_matrices, n_rows = self.piece.blocks.shape[:2]
        return [(matrix, rows) for matrix in range(n_matrices) for rows in tiles(n_rows, 4096, 4096)]

    def write(self, matrix: int, rows: slice) -> None:
        """Put what has been trained into the blocks, each number rounded to its format."""
        assert self.first is not None
        assert self.change is not None
        values = (1 + self.change[matrix][rows]).mul_(self.first[matrix][rows])
        write_scales(self.piece.blocks[matrix][rows], self.type, values)

    def sorted_rows(self, rows: Index | None) -> np.ndarray | None:
        """The file's rows in what the view takes, `rows`, where fill.py has sorted the blocks by them."""
        return rows if self.piece.view.rows is None and isinstance(rows, np.ndarray) else None

    def file_blocks(self, rows: Index | None) -> np.ndarray:
        """The blocks u8 [n_matrices · n_rows, row_bytes] in the file's order; rows: what the view takes."""
        blocks = self.piece.blocks
        taken = self.sorted_rows(rows)
        if taken is not None:
            blocks = blocks[:, torch.from_numpy(taken)]  # the reverse
        return blocks.reshape(-1, blocks.shape[-1]).cpu().numpy()


class Factors:
    """What the matrices of a piece are multiplied with as wholes (NVFP4's `.scale`), moved by a relative change.

    start, change: [n_matrices] f32.
    """

    def __init__(self, piece: ScaledPiece) -> None:
        assert piece.piece.factors is not None
        self._piece = piece
        self.name = piece.name.removesuffix("weight") + "scale"
        self.start = torch.tensor(piece.piece.factors, dtype=torch.float32)
        self.change = torch.zeros_like(self.start)

    def gradient(self, strand: int) -> torch.Tensor:
        """From those of the blocks' scales: a matrix grows with its factor as with all of them."""
        return self._piece.grads[strand].sum((1, 2, 3)).to(self.start.device)

    def apply(self) -> None:
        """Put the changed factors into the model."""
        self._piece.piece.factors = tuple(self.values().tolist())

    def values(self) -> torch.Tensor:
        return (1 + self.change) * self.start
