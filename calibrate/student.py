"""A quantized model that can be trained: its scales, its vectors, and codes near the next one."""

from __future__ import annotations

import math

import numpy as np
import torch

from quantmill.calibrate.codes import MovingCodes
from quantmill.calibrate.head import Divergence, Head, final_hidden, head_of
from quantmill.calibrate.modules import ScaledEmbedding, make_trainable
from quantmill.calibrate.rates import Rates
from quantmill.calibrate.scales import FEW_TOKENS, Factors, ScaledPiece, Way
from quantmill.calibrate.strands import Strands
from quantmill.calibrate.vectors import Vector, stored_vectors, vectors_of
from quantmill.gguf_io import TensorSource
from quantmill.models.fill import matrix_factors
from quantmill.models.model import LoadedModel
from quantmill.models.workers import ALONE, Workers
from quantmill.qkernels import to_float32


class Student:
    """A loaded model whose scales and vectors can be trained.

    dtype: of products; everything else is float32. workers: share products; keepers: what is kept of blocks that lie in
    main memory while a GPU makes the products.
    """

    def __init__(
        self, loaded: LoadedModel, dtype: torch.dtype, workers: Workers, keepers: Workers | None = None
    ) -> None:
        self.loaded, self.workers = loaded, keepers or workers
        self.strands = Strands(workers)
        self.pieces = make_trainable(loaded.model, Way(dtype, workers, self.strands, loaded.device))
        self.head, self.head_weight = head_of(loaded.model, dtype)
        self.vectors: list[Vector] = []
        self.moving: list[ScaledPiece] = []
        self.factors: list[Factors] = []
        self.codes: list[MovingCodes] = []
        self._anchors = [
            module.anchor for module in loaded.model.modules() if isinstance(module, ScaledEmbedding)
        ]
        self.strands.keep(list(loaded.model.get_decoder().layers))

    def start(self, rates: Rates, original: TensorSource | None = None) -> None:
        """Let everything move that has a rate. original: the model's own weights, where codes that move begin."""
        for piece in self.pieces.values():
            if rates.moves_blocks(piece.name, piece.type):
                scales, sub_scales = rates.of(piece.type), rates.sub_scales.get(piece.type, 0.0)
                piece.start(scales, sub_scales, self.strands.count)
                self.moving.append(piece)
                if piece.piece.factors is not None and rates.vectors > 0:
                    self.factors.append(Factors(piece))
                if rates.moves_codes(piece.name, piece.type):
                    piece.codes = MovingCodes(piece.type, piece.piece.blocks)
        self.codes = [piece.codes for piece in self.moving if piece.codes is not None]
        work = [
            (piece, piece.codes, matrix)
            for piece in self.moving
            if piece.codes is not None
            for matrix in range(len(piece.tokens))
        ]
        factors = matrix_factors(original, self.loaded.table) if work and original is not None else {}
        self.workers.map(
            lambda one: one[1].begin(one[2], self._original(*one[::2], original, factors.get(one[0].name))),
            work,
        )
        if rates.vectors > 0:
            types = (
                {spec.name: spec.type for spec in self.loaded.source.specs()} if self.loaded.source else {}
            )
            self.vectors = vectors_of(self.loaded.model, self.loaded.table, lambda name: types[name] == "F32")

    def _original(
        self,
        piece: ScaledPiece,
        matrix: int,
        original: TensorSource | None,
        factors: tuple[float, ...] | None,
    ) -> torch.Tensor:
        """The rows of a matrix as the piece has them, of the original, whose matrices `factors` multiply: [n_rows,
        n_cols] f32."""
        assert original is not None
        n_rows = piece.piece.blocks.shape[1]
        raw, type = original.fetch(piece.name, matrix * n_rows, n_rows)
        values = torch.from_numpy(to_float32(raw, type)).view(n_rows, -1).to(piece.piece.blocks.device)
        original.release(piece.name, matrix * n_rows, n_rows)
        rows = piece.sorted_rows(self.loaded.table.views[piece.name].rows)
        if rows is not None:
            values = values[torch.from_numpy(np.argsort(rows))]
        if factors is not None:
            values = values * factors[matrix]
        return values if piece.piece.factors is None else values / piece.piece.factors[matrix]

    def apply(self) -> None:
        """Put every change into the model, rounded to what the file can hold."""
        work = [(piece, *part) for piece in self.moving for part in piece.pieces_of_work()]
        self.workers.map(lambda one: one[0].write(*one[1:]), work)
        wishing = [(codes, matrix) for codes in self.codes for matrix in codes.matrices()]
        self.workers.map(lambda one: one[0].move(one[1]), wishing)
        for factors in self.factors:
            factors.apply()
        for vector in self.vectors:
            vector.apply()

    def promised_by_codes(self) -> float:
        """What the last gradient says of all codes' wishes a step further, were the loss linear."""
        pulled = [(codes, matrix) for codes in self.codes for matrix in codes.matrices()]
        return sum(self.workers.map(lambda one: one[0].promised(one[1]), pulled))

    def hidden(self, chunk: np.ndarray) -> torch.Tensor:
        """chunk [n_ctx] → the states that enter the head, [n_ctx, n_hidden] f32."""
        ids = torch.from_numpy(chunk.astype(np.int64))[None].to(self.loaded.device)
        return final_hidden(self.loaded.model, ids)[0]

    def pull(self, chunk: np.ndarray, wanted: torch.Tensor, divergence: Divergence) -> float:
        """Run on chunk [n_ctx] and collect what the loss says of everything that moves, in the strand of the caller's
        thread. wanted: the teacher's states. → the loss; nothing is collected for one that is not a number."""
        hidden = self.hidden(chunk)
        loss, back = divergence.loss_and_gradient(wanted.to(hidden.device), hidden.detach())
        if math.isfinite(loss):
            leaves = [*(vector.parameter for vector in self.vectors), *self._anchors]
            found = torch.autograd.grad(hidden, leaves, back, allow_unused=True)
            for vector, one in zip(self.vectors, found, strict=False):
                vector.found[self.strands.number] = one
        return loss

    def settle(self) -> None:
        """Set back the experts that were trained on too few tokens."""
        for piece in self.moving:
            if len(piece.tokens) > 1 and piece.change is not None:
                piece.change[piece.tokens < FEW_TOKENS] = 0
        self.apply()

    def changed_tensors(self) -> dict[str, np.ndarray]:
        """After settle: the bytes of every trained tensor of the file, u8 [n_rows, row_bytes], in the file's order."""
        out = {}
        for name, piece in self.pieces.items():
            if piece.moves:
                out[name] = piece.file_blocks(self.loaded.table.views[name].rows)
        vectors = {vector.name: vector.parameter.detach() for vector in self.vectors}
        stored = stored_vectors(vectors, self.loaded.table)
        stored |= {factors.name: factors.values() for factors in self.factors}
        for name, values in stored.items():
            out[name] = values.cpu().numpy().astype("<f4").reshape(1, -1).view(np.uint8)
        return out


def teacher_head(loaded: LoadedModel, dtype: torch.dtype) -> tuple[Head, torch.Tensor]:
    """Make a loaded original run in `dtype`, on the thread that calls it; its head and the head's decoded matrix."""
    make_trainable(loaded.model, Way(dtype, ALONE, Strands(ALONE, 0), loaded.device))
    head, weight = head_of(loaded.model, dtype)
    return head, weight.matrix(0)
