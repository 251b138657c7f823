"""What a gradient of weights says of their groups' scales, and of where each weight wants to be, on any device.

On a CPU in one walk through the cache, compiled; elsewhere as torch's operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from quantmill.qkernels.lanes import native
from quantmill.qkernels.lanes.cpu_pull_shape import HALF, KINDS, LANES, LIMIT, STEP, TINY

__all__ = ["HALF", "LIMIT", "STEP", "TINY", "Pull", "of_groups", "wished"]

_KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}
assert set(_KINDS.values()) == set(KINDS)


@functools.cache
def _functions(processor: native.Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_pull_driver import text_of

        return text_of(processor)

    shapes = {
        f"{name}_{kind}": shape for name, shape in (("weigh", (5, 3)), ("wish", (8, 3))) for kind in KINDS
    }
    return native.functions("pulls", text, shapes, processor)


def _function(name: str, weights: torch.Tensor, *lengths: int) -> Callable[..., int] | None:
    """What is compiled for these weights; None where torch must do."""
    kind = _KINDS.get(weights.dtype)
    if weights.device.type != "cpu" or kind is None or any(length % LANES for length in lengths):
        return None
    return _functions(native.host())[f"{name}_{kind}"]


def of_groups(
    weights: torch.Tensor, made: torch.Tensor, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weights dL/dW and made [n_rows, n_cols] of one dtype → Σ weight · made and Σ weight of every `group` columns,
    both [n_rows, n_cols / group] f32, and Σ weight² of each row, [n_rows] f32."""
    assert weights.dtype == made.dtype
    assert weights.shape == made.shape
    n_rows, n_cols = weights.shape
    function = _function("weigh", weights, group)
    if function is None:
        values = weights.float()
        grouped = values.view(n_rows, -1, group)
        products = (grouped * made.float().view_as(grouped)).sum(2)
        return products, grouped.sum(2), torch.linalg.vecdot(values, values)
    weights, made = weights.contiguous(), made.contiguous()
    products, sums = weights.new_empty((2, n_rows, n_cols // group), dtype=torch.float32)
    squares = weights.new_empty(n_rows, dtype=torch.float32)
    arrays = (weights, made, products, sums, squares)
    function(*(array.data_ptr() for array in arrays), n_rows, n_cols, group)
    return products, sums, squares


@dataclass(frozen=True)
class Pull:
    """What a step makes of gradients.

    share_of_new: of the mean squares that are kept. known: how much of these has been seen. factor: how far a gradient
    of the usual size moves a wish. most: how far any does, below 2^15.
    """

    share_of_new: float
    known: float
    factor: float
    most: float


def wished(
    wishes: torch.Tensor,
    weights: torch.Tensor,
    squares: torch.Tensor,
    seen: torch.Tensor,
    along: torch.Tensor,
    pull: Pull,
    block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move wishes i16 [n_rows, n_cols], contiguous, against dL/dW, in place, each by a whole number.

    weights [n_rows, n_cols]; squares [n_rows] f32: Σ weight² of each row; seen [n_rows] f32, contiguous: their means of
    all steps, changed in place; along [n_cols] f32: what a column is multiplied with. → Σ weight² of each column
    [n_cols] f32, and which `block` columns of a row have a wish beyond HALF, [n_rows, n_cols / block] bool.
    """
    assert wishes.is_contiguous()
    assert seen.is_contiguous()
    n_rows, n_cols = weights.shape
    function = _function("wish", weights, block)
    if function is None:
        seen.lerp_(squares / n_cols, pull.share_of_new)
        across = pull.factor / (seen / pull.known).clamp_min_(TINY).sqrt_()
        values = weights.float()
        change = (values * across[:, None]).mul_(along).clamp_(-pull.most, pull.most).round_()
        wishes.copy_((wishes - change.to(torch.int32)).clamp_(-LIMIT, LIMIT))
        return values.square().sum(0), (wishes.abs() > HALF).view(n_rows, -1, block).any(2)
    columns = torch.zeros(n_cols)
    beyond = torch.empty(n_rows, n_cols // block, dtype=torch.bool)
    numbers = torch.tensor([pull.share_of_new, pull.known, pull.factor, pull.most])
    arrays = (weights.contiguous(), wishes, squares, seen, numbers, along, columns, beyond)
    function(*(array.data_ptr() for array in arrays), n_rows, n_cols, block)
    return columns, beyond
