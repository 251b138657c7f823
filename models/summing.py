"""Sums of what enters a place of a walk, batch by batch, by threads that leave no trace in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

from quantmill.models.errors import ModelError
from quantmill.models.memory import trim
from quantmill.models.places import Place

if TYPE_CHECKING:
    from quantmill.models.walk import Walk

MOST_GROUPS = 8
SUM_BYTES = 1 << 30  # of second moments being summed at a time, by all threads


@dataclass(frozen=True)
class Seen:
    """What enters a matrix in one batch: rows of both streams, the same tokens in each; of experts several at a time.

    original, changed: [n_experts, n, n_cols] f32; experts with fewer tokens than n have rows of zeros at the end
    experts, counts: which, and how many tokens of each
    residual: what both streams carry past the matrix, [n_experts, n, n_out] of the original less the changed one, for
    experts with what routing has lost; None where the layer does not simply add the product to its stream.
    """

    original: torch.Tensor
    changed: torch.Tensor
    experts: tuple[int, ...]
    counts: tuple[int, ...]
    residual: torch.Tensor | None = None


class Summing(Protocol):
    """Sums over batches; `add` is told the batch's number."""

    def add(self, batch: int, seen: Seen) -> None: ...
    def join(self, other: Any) -> None: ...


Sum = TypeVar("Sum", bound=Summing)


def summed_up(walk: Walk, place: Place, make: Callable[[], Sum], see: Callable[[int], Iterable[Seen]]) -> Sum:
    """Sums of what `see` gives for every batch: of several of `make` side by side, joined in order.

    As soon as they can be: few are held at a time, and how many threads there are does not show.
    """
    groups = groups_of(len(walk.batches), place.n_mat, place.n_cols, walk.loaded.device.type)
    joining = _Joining[Sum]()

    def one(group: int) -> None:
        joining.put(group, added(make(), groups[group], see))

    walk.share_out(one, range(len(groups)))
    trim()
    return joining.total


def groups_of(n_batches: int, n_mat: int, n_cols: int, device: str) -> list[range]:
    """Batches that are added one after the other, group by group; what groups have is then added in their order."""
    bytes_each = 16 * n_mat * n_cols * n_cols
    n_groups = max(1, min(MOST_GROUPS, n_batches, SUM_BYTES // bytes_each))
    if device != "cpu":
        n_groups = 1
    bounds = [n_batches * i // n_groups for i in range(n_groups + 1)]
    return [range(*bounds[i : i + 2]) for i in range(n_groups)]


def added(sums: Sum, batches: Iterable[int], see: Callable[[int], Iterable[Seen]]) -> Sum:
    """The same sums, with what `see` gives of batches."""
    for batch in batches:
        for seen in see(batch):
            sums.add(batch, seen)
    return sums


class _Joining(Generic[Sum]):
    """Sums that threads finish in any order, joined in the order of their numbers."""

    total: Sum

    def __init__(self) -> None:
        self._following = 0
        self._waiting: dict[int, Sum] = {}
        self._lock = threading.Lock()

    def put(self, number: int, sums: Sum) -> None:
        with self._lock:
            self._waiting[number] = sums
            while self._following in self._waiting:
                found = self._waiting.pop(self._following)
                if self._following:
                    self.total.join(found)
                else:
                    self.total = found
                self._following += 1


def require_finite(walk: Walk, batch: int, part: torch.Tensor, name: str, where: str) -> None:
    """part: what enters tensor `name`. Raises ModelError with the chunk that holds what is not finite."""
    if not part.is_floating_point() or bool(part.isfinite().all()):
        return
    rows = part if part.ndim == 3 else part.view(len(walk.batches[batch]), -1, part.shape[-1])
    bad = ~rows.isfinite().flatten(1).all(1)
    chunk = int(walk.first_chunks[batch]) + int(bad.nonzero()[0])
    raise ModelError(
        f"{name}: what enters it is not finite in chunk {chunk + 1} ({where}); the model or its weights overflow "
        "there: look at the text of that chunk, or choose a wider type for the tensors before it"
    )
