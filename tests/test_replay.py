"""A layer that runs again for its gradient takes its products from where they were put."""

import pytest
import torch
from torch import nn

from quantmill.calibrate.replay import Replay
from quantmill.calibrate.strands import Strands
from quantmill.models.workers import ALONE


class Doubled(torch.autograd.Function):
    """Two products in one, counted, as they would be computed by somebody else's code."""

    @staticmethod
    def forward(ctx, x, weight, replay, made):
        def compute():
            made.append(1)
            return x @ weight, (x @ weight).to(torch.bfloat16)

        product, narrow = replay.of(compute)
        ctx.save_for_backward(x, weight, narrow)
        return product

    @staticmethod
    def backward(ctx, back):
        x, weight, narrow = ctx.saved_tensors
        return back @ weight.T + 0 * narrow.float(), x.T @ back, None, None


class Layer(nn.Module):
    def __init__(self, weight, replay, made):
        super().__init__()
        self.weight, self.replay, self.made = nn.Parameter(weight), replay, made

    def forward(self, x):
        inner = Doubled.apply(x, self.weight, self.replay, self.made).tanh()
        return Doubled.apply(inner, self.weight, self.replay, self.made)


@pytest.mark.parametrize(("room", "products"), [(0, 16), (2 * 256 + 3 * 384, 13), (1 << 20, 8)])
def test_the_gradient_is_that_of_layers_that_keep_everything(room, products):
    """Three steps, so that memory is used again; 4 layers of 8 · 8 inputs and 2 products in 6 bytes a number each."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(8, 8, generator=generator) / 3 for _ in range(4)]
    inputs = [torch.randn(8, 8, generator=generator) for _ in range(3)]
    plain = [Layer(weight.clone(), Replay(0), []) for weight in weights]
    made, strands = [], Strands(ALONE, room)
    kept = [Layer(weight.clone(), strands.replay, made) for weight in weights]
    strands.keep(kept)
    for x in inputs:
        made.clear()
        results = []
        for layers in (plain, kept):
            start = x.clone().requires_grad_()
            out = start
            for layer in layers:
                out = layer(out)
            out.square().sum().backward()
            results.append((out.detach(), start.grad, *(layer.weight.grad for layer in layers)))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
        assert len(made) == products
