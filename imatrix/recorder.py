"""Sums of what enters every matrix of a model, taken on the device while the model runs.

A hook in front of every linear layer sums x² over the rows of the batch; experts.py does the same for each
expert. The sums of a batch stay apart until the batch is complete and finite; then they are added to the
totals with the rounding error of each addition kept in a second float32 (Knuth's two-sum, works where there
is no float64), so that a long run loses nothing. Only sums ever leave the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from gguf_io.convert.names import TensorTable
from gguf_io.convert.rules import Index
from imatrix.experts import is_recordable, recording_forward
from imatrix.matrix import Entry, ImatrixError


@dataclass(frozen=True)
class Taker:
    """A GGUF tensor that takes its statistics from one input.

    matrix: which matrix of the tensor's stack this input feeds, None: all, or the only one
    columns: which columns of the input, in which order, None: all
    n_mat: matrices in the tensor
    """

    name: str
    matrix: int | None
    columns: Index | None
    n_mat: int


@dataclass
class Input:
    """One place where activations enter a matmul: [n_mat] row counts, [n_mat, n_cols] sums in two float32."""

    takers: tuple[Taker, ...]
    counts: np.ndarray
    square: tuple[torch.Tensor, torch.Tensor] | None = None
    plain: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass
class Batch:
    """What one input saw in the batch that is running: sums [n_mat, n_cols] f32 on the device."""

    square: torch.Tensor
    plain: torch.Tensor | None
    counts: np.ndarray


@dataclass
class Recorder:
    """Watches a model. with_means: also Σx. route_all: every expert is shown every token (recorded, not used).

    missed: GGUF matrices of blocks whose input cannot be seen in this model.
    """

    table: TensorTable
    with_means: bool = False
    process_output: bool = False
    route_all: bool = False
    inputs: list[Input] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    pending: dict[int, Batch] = field(default_factory=dict)
    _undo: list[Callable[[], Any]] = field(default_factory=list)
    _last: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None

    def attach(self, model: nn.Module) -> None:
        """Put hooks into `model`. Raises ImatrixError when nothing of it can be watched."""
        for name, module in model.named_modules():
            if any(f"{name}.{part}" in self.table.uses for part in ("gate_up_proj", "up_proj", "down_proj")):
                self._attach_experts(name, module)
            elif f"{name}.weight" in self.table.uses and _is_linear(module):
                self._attach_linear(name, module)
        if self.process_output:
            self._attach_output(model)
        if not self.inputs:
            raise ImatrixError(f"{type(model).__name__}: no matrix of this model can be watched")
        seen = {taker.name for place in self.inputs for taker in place.takers}
        self.missed = [
            name
            for name, view in self.table.views.items()
            if _is_block_matrix(name) and len(view.shape) > 1 and name not in seen
        ]

    def detach(self) -> None:
        for undo in self._undo:
            undo()
        self._undo = []
        self._last = None
        self.pending = {}

    def _attach_linear(self, name: str, module: nn.Module) -> None:
        place = self._place(f"{name}.weight")
        if place is not None:
            self._hook(module, place)

    def _attach_output(self, model: Any) -> None:
        """The output projection; that of a tied model is the embedding, whose tensor is what gets quantized."""
        name = "output.weight" if "output.weight" in self.table.views else "token_embd.weight"
        head = model.get_output_embeddings()
        if head is None:
            raise ImatrixError(f"{type(model).__name__}: has no output projection for --process-output")
        self._hook(head, Input((Taker(name, None, None, 1),), np.zeros(1, np.int64)))

    def _hook(self, module: nn.Module, place: Input) -> None:
        self.inputs.append(place)
        handle = module.register_forward_pre_hook(partial(self._see, len(self.inputs) - 1))
        self._undo.append(handle.remove)

    def _attach_experts(self, name: str, module: nn.Module) -> None:
        if not is_recordable(module):
            return  # its matrices appear among the missed
        up = "gate_up_proj" if f"{name}.gate_up_proj" in self.table.uses else "up_proj"
        into, out = self._place(f"{name}.{up}"), self._place(f"{name}.down_proj")
        if into is None or out is None:
            return
        self.inputs += [into, out]
        indices = (len(self.inputs) - 2, len(self.inputs) - 1)
        forward = partial(recording_forward, module, self._see_expert, indices, self.route_all)
        module.forward = forward  # type: ignore[method-assign]
        self._undo.append(partial(delattr, module, "forward"))

    def _place(self, hf_name: str) -> Input | None:
        """The input of a Hugging Face weight: every block matrix of the GGUF that is made of it takes from it."""
        takers = []
        stacked = len(self.table.shapes.get(hf_name, ())) > 2
        n_mat = 1
        for use in self.table.uses.get(hf_name, ()):
            view = self.table.views[use.name]
            if len(view.shape) < 2 or not _is_block_matrix(use.name):
                continue
            if view.transpose and view.matrices > 1 and not stacked:
                continue  # cut into heads and turned round: its input is inside the attention
            # the input runs along the source's columns, or its rows where the matrix is stored turned round
            columns = view.rows if view.transpose else view.columns
            takers.append(Taker(use.name, use.matrix, columns, view.matrices))
            n_mat = view.matrices if stacked else 1
        return Input(tuple(takers), np.zeros(n_mat, np.int64)) if takers else None

    def _see(self, index: int, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        if self._last is None or self._last[0] is not x:
            # q, k and v (gate and up) are given the very same tensor: sum it once
            self._last = (x, *self._sums(x))
        _, square, plain = self._last
        batch = Batch(
            square[None], None if plain is None else plain[None], np.array([x.numel() // x.shape[-1]])
        )
        if index in self.pending:  # a layer that is used twice in one pass
            batch = _joined(self.pending[index], batch)
        self.pending[index] = batch

    def _see_expert(self, index: int, expert: int, x: torch.Tensor) -> None:
        """x [n_rows, n_cols] enters one expert of a stack."""
        place = self.inputs[index]
        batch = self.pending.get(index)
        if batch is None:
            n_mat = len(place.counts)
            zeros = torch.zeros(n_mat, x.shape[-1], device=x.device)
            batch = Batch(zeros, zeros.clone() if self.with_means else None, np.zeros(n_mat, np.int64))
            self.pending[index] = batch
        square, plain = self._sums(x)
        batch.square[expert] += square
        if batch.plain is not None and plain is not None:
            batch.plain[expert] += plain
        batch.counts[expert] += x.shape[0]

    def _sums(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [..., n_cols] → Σx², Σx [n_cols] f32 over all rows."""
        rows = x.reshape(-1, x.shape[-1]).float()
        return rows.square().sum(0), rows.sum(0) if self.with_means else None

    def bad_input(self) -> str | None:
        """Name of the first tensor whose sums of the running batch are not finite."""
        self._last = None
        if not self.pending:
            return None
        finite = torch.stack([batch.square.sum() for batch in self.pending.values()]).isfinite().tolist()
        for index, good in zip(self.pending, finite, strict=True):
            if not good:
                return self.inputs[index].takers[0].name
        return None

    def commit(self) -> None:
        """Add the batch to the totals, all of it or (interrupted) nothing."""
        inputs = list(self.inputs)
        for index, batch in self.pending.items():
            old = inputs[index]
            plain = None if batch.plain is None else _added(old.plain, batch.plain)
            inputs[index] = Input(
                old.takers, old.counts + batch.counts, _added(old.square, batch.square), plain
            )
        self.inputs, self.pending, self._last = inputs, {}, None

    def drop(self) -> None:
        """Forget the batch."""
        self.pending, self._last = {}, None

    def entries(self) -> dict[str, Entry]:
        """Totals by GGUF name, on the host."""
        found: dict[str, Entry] = {}
        for place in self.inputs:
            if place.square is None:
                continue
            square = _total(place.square)
            plain = None if place.plain is None else _total(place.plain)
            for taker in place.takers:
                _take(found, taker, place.counts, square, plain)
        return found


def _is_linear(module: nn.Module) -> bool:
    """A layer that multiplies its input by a matrix: nn.Linear and its like, routers with a plain weight."""
    if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd) or hasattr(module, "num_embeddings"):
        return False
    return len(getattr(module.weight, "shape", ())) == 2


def _is_block_matrix(name: str) -> bool:
    return name.startswith("blk.") and name.endswith(".weight")


def _joined(one: Batch, other: Batch) -> Batch:
    plain = None if one.plain is None or other.plain is None else one.plain + other.plain
    return Batch(one.square + other.square, plain, one.counts + other.counts)


def _added(
    total: tuple[torch.Tensor, torch.Tensor] | None, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two-sum: (high, low) + value, where low gathers what high cannot hold."""
    if total is None:
        return value, torch.zeros_like(value)
    high, low = total
    added = high + value
    part = added - high
    return added, low + ((high - (added - part)) + (value - part))


def _total(pair: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    high, low = (part.cpu().double() for part in pair)
    return (high + low).float().numpy()


def _take(
    found: dict[str, Entry], taker: Taker, counts: np.ndarray, square: np.ndarray, plain: np.ndarray | None
) -> None:
    def chosen(values: np.ndarray | None) -> np.ndarray | None:
        return values if values is None or taker.columns is None else values[:, taker.columns]

    square_of, plain_of = chosen(square), chosen(plain)
    assert square_of is not None
    if taker.matrix is None:
        if taker.n_mat > len(square_of):  # a matrix cut into heads that share one input: one count for all
            square_of = np.tile(square_of, (1, taker.n_mat))
            plain_of = None if plain_of is None else np.tile(plain_of, (1, taker.n_mat))
        found[taker.name] = Entry(square_of, counts, plain_of)
        return
    # one expert of a stack whose experts are modules of their own
    n_cols = square_of.shape[1]
    if taker.name not in found:
        empty = np.zeros((taker.n_mat, n_cols), np.float32)
        sums = None if plain_of is None else empty.copy()
        found[taker.name] = Entry(empty, np.zeros(taker.n_mat, np.int64), sums)
    entry = found[taker.name]
    entry.in_sum2[taker.matrix] = square_of[0]
    entry.counts[taker.matrix] = counts[0]
    if entry.in_sum is not None and plain_of is not None:
        entry.in_sum[taker.matrix] = plain_of[0]
