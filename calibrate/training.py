"""Train a quantized model against the original's predictions.

A step is AT_ONCE chunks of text: of each the student runs, the KL divergence of its predictions from the teacher's is
taken over the whole vocabulary and every position; then Adam moves each scale by a relative change, for one chunk after
the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from quantmill.calibrate.adam import Adam, rate_at
from quantmill.calibrate.codes import KEPT
from quantmill.calibrate.errors import CalibrationError
from quantmill.calibrate.head import Divergence
from quantmill.calibrate.rates import Rates
from quantmill.calibrate.strands import AT_ONCE
from quantmill.calibrate.student import Student

_COURSE = ("losses", "promised", "promised_by_codes", "looks")
PATIENCE = 2  # looks at held-back chunks in a row that found nothing better end a training


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

    def step(self, chunks: np.ndarray, wanted: Any) -> None:
        """Train on the next AT_ONCE chunks of [n_chunk, n_ctx], or what is left; wanted[i]: the teacher's states.

        Raises CalibrationError for a loss that is not a number.
        """
        numbers = self.order[self.n_done : self.n_done + AT_ONCE].tolist()
        self.between_steps = False
        code_rate = rate_at(self.n_done, len(self.order)) * self.code_rate
        for piece in self.student.moving:
            piece.code_rate = code_rate
        self.divergence.prepare()
        strands = self.student.strands
        for first in range(0, len(numbers), strands.count):
            part = numbers[first : first + strands.count]
            losses = strands.run(partial(self._pull, part, chunks, wanted), len(part))
            for strand, loss in enumerate(losses):
                self._move(strand, loss)
        promised = self._rates.codes * self.student.promised_by_codes()
        self.promised_by_codes += [promised] * len(numbers)
        self._apply()
        self.between_steps = True

    def _pull(self, numbers: Sequence[int], chunks: np.ndarray, wanted: Any, strand: int) -> float:
        i = numbers[strand]
        loss = self.student.pull(chunks[i], wanted[i], self.divergence)
        if not math.isfinite(loss):
            raise CalibrationError(
                f"chunk {i + 1} of the text: the divergence is {loss} after {self.n_done} chunks; "
                "a lower --lr may help, and --dtype float32"
            )
        return loss

    def _move(self, strand: int, loss: float) -> None:
        """Let scales and vectors go a step against one chunk's gradient."""
        gradients = [knob.gradient(strand) for knob in self.knobs]
        self.promised.append(self.adam.promised(gradients, self.rates))
        self.losses.append(loss)
        share = rate_at(self.n_done - 1, len(self.order)) * self.share
        self.adam.step(gradients, [rate * share for rate in self.rates])
        for piece in self.student.moving:
            piece.forget(strand)

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
            self.best = [one.clone() for one in self._moved()]
        self.looks.append(divergence)

    def _moved(self) -> list[torch.Tensor]:
        """All that a training changes in the model: the knobs' changes, and the blocks of moving codes."""
        return [*(knob.change for knob in self.knobs), *(codes.blocks for codes in self.student.codes)]

    @property
    def improves(self) -> bool:
        """Whether the held-back chunks have become better lately."""
        return not self.looks or len(self.looks) - self.looks.index(min(self.looks)) <= PATIENCE

    def back_to_best(self) -> None:
        """Set everything back to where the held-back chunks were lowest."""
        for now, then in zip(self._moved(), self.best, strict=True):
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
        for i, piece in enumerate(self.student.moving):
            out[f"{i}.tokens"] = piece.tokens
        return out

    def large_state(self) -> list[torch.Tensor]:
        """The rest of it, whose size is known before."""
        changes = [knob.change for knob in self.knobs]
        moments = [moment for both in self.adam.moments for moment in both]
        codes = [getattr(codes, what) for codes in self.student.codes for what in KEPT]
        return changes + moments + codes + self.best

    def resume(self, state: Mapping[str, torch.Tensor], fill: Callable[[list[torch.Tensor]], None]) -> None:
        """Go on where `state` was taken; fill: puts the `large_state` of then into tensors."""
        for name in _COURSE:
            setattr(self, name, state[name].tolist())
        if self.looks:
            self.best = [torch.empty_like(one) for one in self._moved()]
        self.adam.n_steps = self.n_done
        for i, piece in enumerate(self.student.moving):
            piece.tokens.copy_(state[f"{i}.tokens"])
        fill(self.large_state())
        self._apply()
