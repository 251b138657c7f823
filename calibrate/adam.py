"""Adam on relative changes, and its course of rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from quantmill.models.workers import Workers

BETAS = (0.9, 0.98)
EPSILON = 1e-12


class Knob(Protocol):
    """What is trained: a change, f32."""

    @property
    def change(self) -> torch.Tensor | None: ...


def rate_at(step: int, steps: int) -> float:
    """The share of the highest rate in a step: up in at most eight steps, then down a cosine to a twentieth."""
    warm = max(1, min(8, steps // 10))
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)) * 0.95 + 0.05)


class Adam:
    """Kingma and Ba's method (2014), with the correction of both moments' beginning. moments: two tensors a knob."""

    def __init__(self, knobs: Sequence[Knob], workers: Workers) -> None:
        self.knobs, self.workers = knobs, workers
        self.moments = [
            (torch.zeros_like(change), torch.zeros_like(change)) for change in map(_change, knobs)
        ]
        self.n_steps = 0

    def promised(self, gradients: Sequence[torch.Tensor], rates: Sequence[float | torch.Tensor]) -> float:
        """What a step against every knob's gradient at these rates would take off the loss, were it linear."""

        def one(number: int) -> float:
            return float((gradients[number].abs() * rates[number]).sum(dtype=torch.float64))

        return sum(self.workers.map(one, range(len(self.knobs))))

    def step(self, gradients: Sequence[torch.Tensor], rates: Sequence[float | torch.Tensor]) -> None:
        """One step; a knob's gradient has its change's shape, its rate is one number or what that can be multiplied
        with. Gradients are used up."""
        self.n_steps += 1
        first, second = (1 - beta**self.n_steps for beta in BETAS)

        def one(number: int) -> None:
            knob, (mean, square) = self.knobs[number], self.moments[number]
            grad = gradients[number]
            mean.lerp_(grad, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            spread = torch.div(square, second, out=grad).sqrt_().add_(EPSILON)
            step = torch.div(mean, spread, out=spread).mul_(rates[number])
            _change(knob).sub_(step, alpha=1 / first)

        self.workers.map(one, range(len(self.knobs)))


def _change(knob: Knob) -> torch.Tensor:
    assert knob.change is not None
    return knob.change
