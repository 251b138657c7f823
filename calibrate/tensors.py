"""A Hugging Face tensor over packed blocks whose scales can move: its products, and what the loss says of them.

A matrix is decoded where it is multiplied, a tile of rows at a time, in memory that each thread uses again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from quantmill.calibrate.scales import Heard, ScaledPiece, Way
from quantmill.models.packed import PackedTensor
from quantmill.models.workers import shares, tiles
from quantmill.qkernels import get_type

TILE_ROWS = 1024  # rows of a matrix decoded, multiplied and summed up at a time
# Of a tile on a GPU, which wants few and large operations: 900 MB with all that is made of it.
TILE_WEIGHTS = 1 << 26
LEAST_ROWS = 256  # fewer are not worth a thread


class ScaledTensor:
    """A Hugging Face tensor over ScaledPieces: its matrices decoded, and their gradients handed to the pieces."""

    def __init__(self, packed: PackedTensor, pieces: dict[str, ScaledPiece], way: Way) -> None:
        self.packed, self.way = packed, way
        self.shape = packed.shape
        self.pieces = [
            pieces.setdefault(piece.name, ScaledPiece(piece, way.device)) for piece in packed.pieces
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Of what enters the product; transformers asks some matrices for it."""
        return self.way.dtype

    @property
    def device(self) -> torch.device:
        """Where it is multiplied."""
        return self.way.device

    @property
    def plain(self) -> bool:
        """Whether rows of the tensor are rows of its one piece."""
        return len(self.pieces) == 1 and self.packed.pieces[0].view.plain

    @property
    def moves(self) -> bool:
        return any(piece.moves for piece in self.pieces)

    def matrix(self, index: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Matrix `index` of the last two dimensions: [n_rows, n_cols] in the products' dtype, into `out` if given."""
        if out is None:
            out = torch.empty(self.shape[-2:], dtype=self.way.dtype, device=self.device)
        for piece, matrix, part in self._shares(index, out):
            if self.plain:
                self._decode_into(piece, matrix, part)
            else:
                n_rows, row_bytes = piece.piece.blocks.shape[-2:]
                row = get_type(piece.type)
                values = torch.empty(
                    n_rows, row_bytes // row.bytes * row.block, dtype=out.dtype, device=out.device
                )
                self._decode_into(piece, matrix, values)
                piece.piece.view.put(part, values)
        return out

    @property
    def tiles(self) -> list[slice]:
        """The rows, as they are decoded and multiplied, a part at a time. A GPU needs no parts but for their memory."""
        n_rows, n_cols = self.shape[-2:]
        if self.device.type == "cpu":
            return tiles(n_rows, TILE_ROWS, LEAST_ROWS)
        return tiles(n_rows, max(TILE_ROWS, TILE_WEIGHTS // n_cols), n_rows)

    def product(self, index: int, inputs: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """inputs [n, n_cols] times the rows of matrix `index`, of each tile [n, n_rows of it].

        The same goes into out [at most n, n_rows], in its dtype.
        """
        whole = None if self.plain else self.matrix(index)
        piece = self.pieces[0]
        matrix = piece.piece._which(index)

        def one(rows: slice) -> torch.Tensor:
            made = self._decoded(piece, matrix, rows, inputs) if whole is None else whole[rows]
            found = inputs @ made.T
            out[:, rows] = found[: len(out)]
            return found

        return tuple(self.way.workers.map(one, self.tiles))

    def product_back(
        self, index: int, outputs: torch.Tensor, inputs: torch.Tensor, n_tokens: int
    ) -> torch.Tensor:
        """From dL/doutputs [n, n_rows] of such a product, and its inputs, dL/dinputs [n, n_cols] f32.

        What the loss says of the scales is added to them. n_tokens: how many of the n are tokens and no padding.
        """
        whole = None if self.plain else self.matrix(index)
        if whole is not None and self.moves:
            self.add_product_gradient(index, whole, outputs, inputs, n_tokens)
        piece = self.pieces[0]
        matrix = piece.piece._which(index)

        def one(rows: slice) -> tuple[torch.Tensor, Heard | None]:
            part = outputs[:, rows]
            if whole is not None:
                return part @ whole[rows], None
            made = self._decoded(piece, matrix, rows, inputs)
            if not piece.moves:
                return part @ made, None
            weights = torch.mm(part.T, inputs, out=self.way.scratch.of("gradient", inputs, *made.shape))
            return part @ made, piece.heard(matrix, rows, made, weights)

        parts = self.way.workers.map(one, self.tiles)
        if whole is None and piece.moves:
            piece.add(
                self.way.strands.number,
                matrix,
                slice(None),
                [heard for _, heard in parts if heard is not None],
            )
            piece.trained_on(matrix, n_tokens)
        total = parts[0][0].float()
        for part, _ in parts[1:]:
            total += part
        return total

    def _decoded(self, piece: ScaledPiece, matrix: int, rows: slice, like: torch.Tensor) -> torch.Tensor:
        """Rows of one matrix for a moment."""
        out = self.way.scratch.of("matrix", like, rows.stop - rows.start, self.shape[-1])
        piece.decode_into(matrix, rows, out)
        return out

    def add_product_gradient(
        self, index: int, made: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor, n_tokens: int
    ) -> None:
        """dL/dW = outputsᵀ inputs, for outputs [n, n_rows] and inputs [n, n_cols]; a tile of rows at a time.

        made: what `matrix` gave. n_tokens: how many of the n are tokens and no padding.
        """
        self.add_gradient_of(index, made, lambda rows: outputs[:, rows].T @ inputs, n_tokens)

    def add_gradient_of(
        self, index: int, made: torch.Tensor, by_rows: Callable[[slice], torch.Tensor], n_tokens: int
    ) -> None:
        """The same of any dL/dW, by_rows: some of its rows."""
        if self.plain:
            piece = self.pieces[0]
            matrix = piece.piece._which(index)

            def one(rows: slice) -> Heard:
                return piece.heard(matrix, rows, made[rows], by_rows(rows))

            heard = self.way.workers.map(one, self.tiles)
            piece.add(self.way.strands.number, matrix, slice(None), heard)
            piece.trained_on(matrix, n_tokens)
            return
        whole = torch.cat(self.way.workers.map(by_rows, self.tiles))
        shares = zip(self._shares(index, whole), self._shares(index, made), strict=True)
        for (piece, matrix, part), (_, _, part_made) in shares:
            view = replace(piece.piece.view, values=None)
            taken, taken_made = view.take(part), view.take(part_made)
            if piece.moves:
                every = slice(0, len(taken))
                piece.add(
                    self.way.strands.number, matrix, every, [piece.heard(matrix, every, taken_made, taken)]
                )
            piece.trained_on(matrix, n_tokens)

    def _shares(self, index: int, whole: torch.Tensor) -> list[tuple[ScaledPiece, int, torch.Tensor]]:
        """Which matrix of which piece makes which part of matrix `index` of this tensor."""
        shares = []
        for piece in self.pieces:
            parts = whole.view(-1, *piece.piece.view.source_matrix)
            for number, part in enumerate(parts):
                shares.append((piece, piece.piece._which(index * len(parts) + number), part))
        return shares

    def _decode_into(self, piece: ScaledPiece, matrix: int, out: torch.Tensor) -> None:
        def one(rows: slice) -> None:
            piece.decode_into(matrix, rows, out[rows])

        self.way.workers.map(one, shares(len(out), self.way.workers))
