"""A model's tensors on packed blocks whose scales can move: ε, the relative change of every scale, and dL/dε."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from quantmill.calibrate.workers import Workers, tiles
from quantmill.gguf_io.convert.rules import Index
from quantmill.models.packed import PackedTensor, Piece, decode
from quantmill.qkernels import get_type
from quantmill.qkernels.scales import gradient, is_continuous, is_trainable, read_scales, scaled, write_scales

TILE_ROWS = 256  # rows of a matrix decoded, multiplied and summed up at a time


class ScaledPiece:
    """One GGUF tensor. change, grad: [n_matrices, n_rows, n_blocks, n_scales] f32, None where nothing moves.

    The rows are the Piece's, which fill.py has put into Hugging Face order where the file has another.
    tokens: [n_matrices], how many inputs each matrix has been trained on.
    """

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.change: torch.Tensor | None = None
        self.grad: torch.Tensor | None = None
        self.tokens = torch.zeros(len(piece.blocks), dtype=torch.int64)
        self.settled = False

    @property
    def name(self) -> str:
        return self.piece.name

    @property
    def type(self) -> str:
        return self.piece.ggml_type

    def start(self) -> None:
        """Let the scales move, from where they are."""
        assert is_trainable(self.type)
        row, blocks = get_type(self.type), self.piece.blocks
        shape = (*blocks.shape[:-1], blocks.shape[-1] // row.bytes, len(row.scales))
        self.change = torch.zeros(shape, dtype=torch.float32, device=blocks.device)
        self.grad = torch.zeros_like(self.change)

    def decoded(self, matrix: int, rows: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of one matrix as the moved scales make them: [n_rows, n_cols] dtype."""
        blocks = self.piece.blocks[matrix][rows]
        if self.change is None:
            return decode(blocks, self.type, dtype)
        if not is_continuous(self.type):
            # Seen as the grid will have it; the gradient passes as if there were none (straight through).
            values = read_scales(blocks, self.type) * (1 + self.change[matrix][rows])
            return decode(write_scales(blocks, self.type, values), self.type, dtype)
        return scaled(blocks, self.type, self.change[matrix][rows]).to(dtype)

    def add_gradient(self, matrix: int, rows: slice, made: torch.Tensor, weights: torch.Tensor) -> None:
        """Add what dL/dW [n_rows, n_cols] of these rows says of their scales; made: what `decoded` gave for them."""
        if self.grad is not None and self.change is not None:
            blocks, change = self.piece.blocks[matrix][rows], self.change[matrix][rows]
            self.grad[matrix][rows] += gradient(blocks, self.type, change, made, weights.float())

    def add_row_gradients(self, rows: torch.Tensor, weights: torch.Tensor) -> None:
        """The same for rows [n] of the only matrix, each named once."""
        if self.grad is not None and self.change is not None:
            blocks, change = self.piece.blocks[0][rows], self.change[0][rows]
            made = scaled(blocks, self.type, change)
            self.grad[0][rows] += gradient(blocks, self.type, change, made, weights.float())

    def settle(self) -> None:
        """Write the moved scales into the blocks, each rounded to its format; nothing moves any more."""
        if self.change is not None:
            values = read_scales(self.piece.blocks, self.type) * (1 + self.change)
            self.piece.blocks = write_scales(self.piece.blocks, self.type, values)
            self.change = self.grad = None
            self.settled = True

    def file_blocks(self, rows: Index | None) -> np.ndarray:
        """The blocks u8 [n_matrices · n_rows, row_bytes] in the file's order; rows: what the view takes."""
        blocks = self.piece.blocks
        if self.piece.view.rows is None and isinstance(rows, np.ndarray):
            blocks = blocks[:, torch.from_numpy(rows)]  # fill.py sorted them, and this is the reverse
        return blocks.reshape(-1, blocks.shape[-1]).cpu().numpy()


class ScaledTensor:
    """A Hugging Face tensor over ScaledPieces: its matrices decoded, and their gradients handed to the pieces."""

    def __init__(self, packed: PackedTensor, pieces: dict[str, ScaledPiece], workers: Workers) -> None:
        self.packed, self.workers = packed, workers
        self.shape = packed.shape
        self.pieces = [pieces.setdefault(piece.name, ScaledPiece(piece)) for piece in packed.pieces]

    @property
    def plain(self) -> bool:
        """Whether rows of the tensor are rows of its one piece."""
        return len(self.pieces) == 1 and self.packed.pieces[0].view.plain

    @property
    def moves(self) -> bool:
        return any(piece.change is not None for piece in self.pieces)

    def matrix(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Matrix `index` of the last two dimensions: [n_rows, n_cols] dtype."""
        out = torch.empty(self.shape[-2:], dtype=dtype, device=self.packed.device)
        for piece, matrix, part in self._shares(index, out):
            if self.plain:
                self._decode_into(piece, matrix, part, dtype)
            else:
                n_rows, row_bytes = piece.piece.blocks.shape[-2:]
                row = get_type(piece.type)
                values = torch.empty(
                    n_rows, row_bytes // row.bytes * row.block, dtype=dtype, device=out.device
                )
                self._decode_into(piece, matrix, values, dtype)
                piece.piece.view.put(part, values)
        return out

    def add_product_gradient(
        self, index: int, made: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor, n_tokens: int
    ) -> None:
        """dL/dW = outputsᵀ inputs, for outputs [n, n_rows] and inputs [n, n_cols]; a tile of rows at a time.

        made: what `matrix` gave. n_tokens: how many of the n are tokens and no padding.
        """
        if self.plain:
            piece = self.pieces[0]
            matrix = piece.piece._which(index)

            def one(rows: slice) -> None:
                piece.add_gradient(matrix, rows, made[rows], outputs[:, rows].T @ inputs)

            self.workers.map(one, tiles(self.shape[-2], TILE_ROWS))
            piece.tokens[matrix] += n_tokens
            return
        whole = torch.cat(
            self.workers.map(lambda rows: outputs[:, rows].T @ inputs, tiles(self.shape[-2], TILE_ROWS))
        )
        shares = zip(self._shares(index, whole), self._shares(index, made), strict=True)
        for (piece, matrix, part), (_, _, part_made) in shares:
            view = replace(piece.piece.view, values=None)
            taken, taken_made = view.take(part), view.take(part_made)
            for rows in tiles(piece.piece.blocks.shape[-2], TILE_ROWS):
                piece.add_gradient(matrix, rows, taken_made[rows], taken[rows])
            piece.tokens[matrix] += n_tokens

    def _shares(self, index: int, whole: torch.Tensor) -> list[tuple[ScaledPiece, int, torch.Tensor]]:
        """Which matrix of which piece makes which part of matrix `index` of this tensor."""
        shares = []
        for piece in self.pieces:
            parts = whole.view(-1, *piece.piece.view.source_matrix)
            for number, part in enumerate(parts):
                shares.append((piece, piece.piece._which(index * len(parts) + number), part))
        return shares

    def _decode_into(self, piece: ScaledPiece, matrix: int, out: torch.Tensor, dtype: torch.dtype) -> None:
        def one(rows: slice) -> None:
            out[rows] = piece.decoded(matrix, rows, dtype)

        self.workers.map(one, tiles(len(out), TILE_ROWS))
