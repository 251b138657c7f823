"""Chunks of one step side by side: each in its strand, gradients in order of the chunks, layer by layer."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from quantmill.calibrate.strands import Strands
from quantmill.models.workers import Workers

N_LAYERS = 6


class _Heard(torch.autograd.Function):
    """Notes when the gradient of a layer comes to it, and how long it takes there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, hear: Any) -> torch.Tensor:
        ctx.hear = hear
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, back: torch.Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        ctx.hear()
        return back * (1 - x.tanh() ** 2), None


class _Layer(nn.Module):
    def __init__(self, number: int, strands: Strands, slow: int, heard: list[tuple[int, int]]) -> None:
        super().__init__()
        self.number, self.strands, self.slow, self.heard = number, strands, slow, heard

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Heard.apply(x * 2, self._hear)

    def _hear(self) -> None:
        strand = self.strands.number
        if strand == self.slow:
            time.sleep(0.01)
        self.heard.append((self.number, strand))


@pytest.fixture
def workers() -> Any:
    made = Workers(2)
    yield made
    made.close()


@pytest.mark.parametrize("slow", [0, 1])
def test_a_later_chunk_comes_to_no_layer_before_the_one_before_it(workers: Workers, slow: int) -> None:
    strands, heard = Strands(workers), []  # type: ignore[var-annotated]
    layers = [_Layer(number, strands, slow, heard) for number in range(N_LAYERS)]
    strands.keep(layers)
    both = threading.Barrier(2, timeout=20)
    inputs = [torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])]

    def work(strand: int) -> torch.Tensor:
        assert strands.number == strand
        both.wait()  # they do run at the same time
        start = inputs[strand].clone().requires_grad_()
        out = start
        for layer in layers:
            out = layer(out)
        both.wait()
        return torch.autograd.grad(out.sum(), start)[0]

    for _ in range(3):
        heard.clear()
        found = strands.run(work, 2)
        for strand, gradient in enumerate(found):
            x = inputs[strand].clone().requires_grad_()
            out = x
            for _layer in layers:
                out = (out * 2).tanh()
            torch.testing.assert_close(gradient, torch.autograd.grad(out.sum(), x)[0])
        assert sorted(heard) == [(number, strand) for number in range(N_LAYERS) for strand in (0, 1)]
        for number in range(N_LAYERS):
            assert heard.index((number, 0)) < heard.index((number, 1))


def test_an_error_in_the_first_strand_does_not_hold_up_the_second(workers: Workers) -> None:
    strands, heard = Strands(workers), []  # type: ignore[var-annotated]
    layers = [_Layer(number, strands, -1, heard) for number in range(N_LAYERS)]
    strands.keep(layers)

    def work(strand: int) -> None:
        start = torch.ones(2, requires_grad=True)
        out = start
        for layer in layers:
            out = layer(out)
        if strand == 0:
            raise ValueError("the first")
        out.sum().backward()

    with pytest.raises(ValueError, match="the first"):
        strands.run(work, 2)
    assert heard == [(number, 1) for number in reversed(range(N_LAYERS))]
    assert strands.number == 0


def test_one_thread_has_one_strand() -> None:
    assert Strands(Workers(1)).count == 1
