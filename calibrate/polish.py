"""Train a quantized model against the original's predictions: its scales, its vectors, and codes near the next one.

A step is one chunk of text: the student runs, the KL divergence of its predictions from the teacher's is
taken over the whole vocabulary and every position, and Adam moves each scale by a relative change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from quantmill.calibrate.adam import Adam, rate_at
from quantmill.calibrate.codes import KEPT, MovingCodes
from quantmill.calibrate.errors import CalibrationError
from quantmill.calibrate.head import Divergence, Head, final_hidden, head_of
from quantmill.calibrate.modules import make_trainable
from quantmill.calibrate.rates import Rates
from quantmill.calibrate.replay import Replay
from quantmill.calibrate.scales import FEW_TOKENS, Factors, ScaledPiece, Way
from quantmill.calibrate.vectors import Vector, stored_vectors, vectors_of
from quantmill.gguf_io import TensorSource
from quantmill.models.model import LoadedModel
from quantmill.models.workers import ALONE, Workers
from quantmill.qkernels import to_float32

_COURSE = ("losses", "promised", "promised_by_codes", "looks")
PATIENCE = 2  # looks at held-back chunks in a row that found nothing better end a training


class Student:
    """A loaded model whose scales and vectors can be trained.

    dtype: of products; everything else is float32.
    """

    def __init__(self, loaded: LoadedModel, dtype: torch.dtype, workers: Workers) -> None:
        self.loaded, self.workers = loaded, workers
        replay = Replay()
        self.pieces = make_trainable(loaded.model, Way(dtype, workers, replay))
        self.head, self.head_weight = head_of(loaded.model, dtype)
        self.vectors: list[Vector] = []
        self.moving: list[ScaledPiece] = []
        self.factors: list[Factors] = []
        self.codes: list[MovingCodes] = []
        replay.keep(list(loaded.model.get_decoder().layers))

    def start(self, rates: Rates, original: TensorSource | None = None) -> None:
        """Let everything move that has a rate. original: the model's own weights, where codes that move begin."""
        for piece in self.pieces.values():
            if rates.moves_blocks(piece.name, piece.type):
                piece.start(rates.of(piece.type), rates.sub_scales.get(piece.type, 0.0))
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
        self.workers.map(lambda one: one[1].begin(one[2], self._original(*one[::2], original)), work)
        if rates.vectors > 0:
            types = (
                {spec.name: spec.type for spec in self.loaded.source.specs()} if self.loaded.source else {}
            )
            self.vectors = vectors_of(self.loaded.model, self.loaded.table, lambda name: types[name] == "F32")

    def _original(self, piece: ScaledPiece, matrix: int, original: TensorSource | None) -> torch.Tensor:
        """The rows of a matrix as the piece has them, of the original: [n_rows, n_cols] f32."""
        assert original is not None
        n_rows = piece.piece.blocks.shape[1]
        raw, type = original.fetch(piece.name, matrix * n_rows, n_rows)
        values = torch.from_numpy(to_float32(raw, type)).view(n_rows, -1).to(piece.piece.blocks.device)
        original.release(piece.name, matrix * n_rows, n_rows)
        rows = piece.sorted_rows(self.loaded.table.views[piece.name].rows)
        if rows is not None:
            values = values[torch.from_numpy(np.argsort(rows))]
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
            out[name] = values.numpy().astype("<f4").reshape(1, -1).view(np.uint8)
        return out


class Training:
    """The steps of a training over chunks; its state can be taken and put back between two steps."""

    def __init__(
        self,
        student: Student,
        divergence: Divergence,
        rates: Rates,
        n_chunks: int,
        n_epochs: int,
        seed: int = 0,
    ) -> None:
        self.student, self.divergence = student, divergence
        self.knobs: list[Any] = [*student.moving, *student.factors, *student.vectors]
        self.rates: list[float | torch.Tensor] = [
            *(rate for piece in student.moving if (rate := piece.rates) is not None),
            *[rates.vectors] * (len(student.factors) + len(student.vectors)),
        ]
        self.adam = Adam(self.knobs, student.workers)
        self._rates = rates
        # What each step at full rates would take off its loss, by the gradient alone.
        self.promised: list[float] = []
        self.promised_by_codes: list[float] = []
        rng = np.random.default_rng(seed)
        self.order = np.concatenate([rng.permutation(n_chunks) for _ in range(n_epochs)])
        self.losses: list[float] = []  # of each chunk before it was trained on
        self.looks: list[float] = []  # the divergence of held-back chunks, where it was looked at
        self.best: list[
            torch.Tensor
        ] = []  # the knobs' changes at the lowest of them, and the blocks of moving codes
        self.between_steps = True  # in the middle of one the state is neither the old nor the new

    @property
    def n_done(self) -> int:
        return len(self.losses)

    def step(self, chunks: np.ndarray, wanted: Any) -> float:
        """Train on the next chunk of [n_chunk, n_ctx]; wanted[i]: the teacher's states. → its loss before.

        Raises CalibrationError for a loss that is not a number.
        """
        i = int(self.order[self.n_done])
        self.between_steps = False
        code_rate = rate_at(self.n_done, len(self.order)) * self.code_rate
        for piece in self.student.moving:
            piece.code_rate = code_rate
        hidden = self.student.hidden(chunks[i])
        states = wanted[i].to(hidden.device)
        loss, back = self.divergence.loss_and_gradient(states, hidden.detach())
        if not np.isfinite(loss):
            raise CalibrationError(
                f"chunk {i + 1} of the text: the divergence is {loss} after {self.n_done} steps; "
                "a lower --lr may help, and --dtype float32"
            )
        hidden.backward(back)
        for factors in self.student.factors:
            factors.collect()
        self.promised.append(self.adam.promised(self.rates))
        self.promised_by_codes.append(self._rates.codes * self.student.promised_by_codes())
        self.losses.append(loss)
        share = rate_at(self.n_done - 1, len(self.order)) * self.share
        self.adam.step([rate * share for rate in self.rates])
        for piece in self.student.moving:
            assert piece.grad is not None
            piece.grad.zero_()
        self._apply()
        self.between_steps = True
        return loss

    @property
    def share(self) -> float:
        """What is left of the rates of scales and vectors.

        What a rate does to the loss grows with the layers and with how fine the types are: a rate that serves a small
        model of 4 bits carries a deep one of 5 far beyond its minimum.
        """
        promise = self._rates.promise
        return 1.0 if promise is None else self._kept(promise, self.promised)

    @property
    def code_rate(self) -> float:
        """What is left of that of codes."""
        return self._rates.codes * self._kept(self._rates.code_promise, self.promised_by_codes)

    def _kept(self, promise: float, by_step: list[float]) -> float:
        """The share of a rate that keeps a promise, by what the whole rate promised in the steps so far."""
        return min(1.0, promise * sum(self.losses) / max(sum(by_step), 1e-30)) if by_step else 1.0

    def looked(self, divergence: float) -> None:
        """Note the divergence of held-back chunks."""
        if divergence < min(self.looks, default=math.inf):
            changes = [knob.change for knob in self.knobs]
            self.best = [one.clone() for one in (*changes, *(codes.blocks for codes in self.student.codes))]
        self.looks.append(divergence)

    @property
    def improves(self) -> bool:
        """Whether the held-back chunks have become better lately."""
        return not self.looks or len(self.looks) - self.looks.index(min(self.looks)) <= PATIENCE

    def back_to_best(self) -> None:
        """Set everything back to where the held-back chunks were lowest."""
        into = [*(knob.change for knob in self.knobs), *(codes.blocks for codes in self.student.codes)]
        for now, then in zip(into, self.best, strict=True):
            now.copy_(then)
        self._apply()

    def settle(self) -> None:
        """Set back what was trained on too little."""
        self.student.settle()
        self.divergence.moved()

    def _apply(self) -> None:
        self.student.apply()
        self.divergence.moved()

    def state(self) -> dict[str, torch.Tensor]:
        """What the next steps depend on, but for `large_state`."""
        out = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in _COURSE}
        out |= {f"{i}.best": change for i, change in enumerate(self.best[: len(self.knobs)])}
        for i, (knob, (mean, square)) in enumerate(zip(self.knobs, self.adam.moments, strict=True)):
            out |= {f"{i}.change": knob.change, f"{i}.mean": mean, f"{i}.square": square}
        for i, piece in enumerate(self.student.moving):
            out[f"{i}.tokens"] = piece.tokens
        return out

    def large_state(self) -> list[torch.Tensor]:
        """The rest of it, whose size is known before: what moving codes need."""
        kept = [getattr(codes, what) for codes in self.student.codes for what in KEPT]
        return kept + self.best[len(self.knobs) :]

    def resume(self, state: Mapping[str, torch.Tensor], fill: Callable[[list[torch.Tensor]], None]) -> None:
        """Go on where `state` was taken; fill: puts the `large_state` of then into tensors."""
        for name in _COURSE:
            setattr(self, name, state[name].tolist())
        if self.looks:
            self.best = [state[f"{i}.best"] for i in range(len(self.knobs))]
            self.best += [torch.empty_like(codes.blocks) for codes in self.student.codes]
        self.adam.n_steps = self.n_done
        for i, (knob, (mean, square)) in enumerate(zip(self.knobs, self.adam.moments, strict=True)):
            knob.change.copy_(state[f"{i}.change"])
            mean.copy_(state[f"{i}.mean"])
            square.copy_(state[f"{i}.square"])
        for i, piece in enumerate(self.student.moving):
            piece.tokens.copy_(state[f"{i}.tokens"])
        fill(self.large_state())
        self._apply()


def teacher_head(loaded: LoadedModel, dtype: torch.dtype) -> tuple[Head, torch.Tensor]:
    """Make a loaded original run in `dtype`, on the thread that calls it; its head and the head's decoded matrix."""
    make_trainable(loaded.model, Way(dtype, ALONE, Replay(0)))
    head, weight = head_of(loaded.model, dtype)
    return head, weight.matrix(0)
