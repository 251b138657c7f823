"""Sums of what enters every matrix of a model, taken on the device while the model runs.

A hook in front of every linear layer sums x² over the rows of the batch; experts.py does the same for each
expert. The sums of a batch stay apart until the batch is complete and finite; then they join the totals
(sums.py). Only sums ever leave the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from quantmill.gguf_io.convert.names import TensorTable
from quantmill.imatrix.matrix import ImatrixError
from quantmill.imatrix.sums import Batch, Input, Sums, Taker, joined, with_batch
from quantmill.models.experts import is_recordable, recording_forward
from quantmill.qkernels.column_sums import of_columns


class _Running(threading.local):
    """The batch that this thread runs, and the tensor it has just summed: (x, Σx², Σx)."""

    def __init__(self) -> None:
        self.batch: dict[int, Batch] = {}
        self.last: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None


@dataclass
class Recorder:
    """Watches a model, a batch a thread; a thread takes what it has seen, and one of them puts batch after batch in.

    with_means: also Σx. route_all: every expert is shown every token (recorded, not used).
    """

    table: TensorTable
    with_means: bool = False
    process_output: bool = False
    route_all: bool = False
    inputs: list[Input] = field(default_factory=list)
    _undo: list[Callable[[], Any]] = field(default_factory=list)
    _running: _Running = field(default_factory=_Running)

    def attach(self, model: nn.Module, kept: Iterable[str] = ()) -> None:
        """Put hooks into `model`. Raises ImatrixError as require_places does."""
        self.attach_part(model, "")
        if self.process_output:
            self.attach_output(model)
        self.require_places(model, kept)

    def require_places(self, model: nn.Module, kept: Iterable[str] = ()) -> None:
        """kept: names of places that a run which is gone on with has sums of. Raises ImatrixError when one of them, or
        anything, is not watched."""
        names = {place.name for place in self.inputs}
        assert len(names) == len(self.inputs)
        if not names:
            raise ImatrixError(f"{type(model).__name__}: no matrix of this model can be watched")
        for name in kept:
            if name not in names:
                raise ImatrixError(
                    f"{name}: the run that was stopped has sums of what enters it, and nothing of that name is watched "
                    "now; go on with the version that began it, or begin anew"
                )

    def attach_part(self, model: nn.Module, prefix: str) -> None:
        """Put hooks into the modules whose names begin so."""
        for name, module in model.named_modules():
            if not name.startswith(prefix):
                continue
            if any(f"{name}.{part}" in self.table.uses for part in ("gate_up_proj", "up_proj", "down_proj")):
                self._attach_experts(name, module)
            elif f"{name}.weight" in self.table.uses and _is_linear(module):
                self._attach_linear(model, name, module)
            elif f"{name}.fn" in self.table.uses:
                self._attach_streams(name, module)

    def detach(self) -> None:
        for undo in self._undo:
            undo()
        self._undo = []
        self._running = _Running()

    def _attach_linear(self, model: nn.Module, name: str, module: nn.Module) -> None:
        place = self._place(f"{name}.weight")
        if place is not None:
            self._hook(module, place)
        for use in self.table.uses[f"{name}.weight"]:
            if self._is_turned_head(f"{name}.weight", use.name):
                self._attach_heads(model, name, use.name)

    def _attach_streams(self, name: str, module: Any) -> None:
        """What mixes the streams of states (hyper-connections) multiplies them as a norm of its own puts them out."""
        place = self._place(f"{name}.fn")
        if place is None:
            return
        self.inputs.append(place)
        see = partial(self._see, len(self.inputs) - 1)
        handle = module.input_norm.register_forward_hook(lambda norm, given, streams: see(norm, (streams,)))
        self._undo.append(handle.remove)

    def _is_turned_head(self, hf_name: str, gguf_name: str) -> bool:
        """A projection cut into heads and turned round, as attn_k_b of a latent attention is."""
        view = self.table.views[gguf_name]
        return view.transpose and view.matrices > 1 and len(self.table.shapes[hf_name]) == 2

    def _attach_heads(self, model: nn.Module, name: str, gguf_name: str) -> None:
        """attn_k_b multiplies the part of each head's query that is not rotated (llama.cpp absorbs it into Q);
        transformers never does, so the query itself is watched."""
        layer = name.rpartition(".")[0]
        modules = dict(model.get_submodule(layer).named_children())
        query = modules.get("q_b_proj", modules.get("q_proj"))
        if query is None:
            return
        view = self.table.views[gguf_name]
        self.inputs.append(Input(gguf_name, (Taker(gguf_name, None, None, 1),)))
        see = partial(self._see_heads, len(self.inputs) - 1, view.matrices, view.shape[-1])
        self._undo.append(query.register_forward_hook(see).remove)

    def _see_heads(
        self, index: int, n_heads: int, n_cols: int, module: nn.Module, arguments: Any, output: torch.Tensor
    ) -> None:
        heads = output.reshape(-1, n_heads, output.shape[-1] // n_heads)[..., :n_cols]
        square, plain = self._sums(heads.reshape(len(heads), -1))
        batch = Batch(square[None], None if plain is None else plain[None], np.array([len(heads)]))
        self._running.batch[index] = batch

    def attach_output(self, model: Any) -> None:
        """The output projection; that of a tied model is the embedding, whose tensor is what gets quantized."""
        name = "output.weight" if "output.weight" in self.table.views else "token_embd.weight"
        head = model.get_output_embeddings()
        if head is None:
            raise ImatrixError(f"{type(model).__name__}: has no output projection for --process-output")
        self._hook(head, Input(name, (Taker(name, None, None, 1),)))

    def _hook(self, module: nn.Module, place: Input) -> None:
        self.inputs.append(place)
        handle = module.register_forward_pre_hook(partial(self._see, len(self.inputs) - 1))
        self._undo.append(handle.remove)

    def _attach_experts(self, name: str, module: nn.Module) -> None:
        if not is_recordable(module):
            return  # its matrices get no entry, and the coverage says so
        up = "gate_up_proj" if f"{name}.gate_up_proj" in self.table.uses else "up_proj"
        into, out = self._place(f"{name}.{up}"), self._place(f"{name}.down_proj")
        if into is None or out is None:
            return
        self.inputs += [into, out]
        indices = (len(self.inputs) - 2, len(self.inputs) - 1)
        forward = partial(recording_forward, module, self._see_expert, indices, self.route_all)
        # accelerate brings weights to the device around `_old_forward`
        place = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        before = module.__dict__.get(place)
        setattr(module, place, forward)
        undo = partial(delattr, module, place) if before is None else partial(setattr, module, place, before)
        self._undo.append(undo)

    def _place(self, hf_name: str) -> Input | None:
        """The input of a Hugging Face weight: every block matrix of the GGUF that is made of it takes from it."""
        takers = []
        stacked = len(self.table.shapes.get(hf_name, ())) > 2
        n_mat = 1
        for use in self.table.uses.get(hf_name, ()):
            view = self.table.views[use.name]
            if len(view.shape) < 2 or not _is_block_matrix(use.name):
                continue
            if self._is_turned_head(hf_name, use.name):
                continue  # what enters it is not what enters this module
            # the input runs along the source's columns, or its rows where the matrix is stored turned round
            columns = view.rows if view.transpose else view.columns
            takers.append(Taker(use.name, use.matrix, columns, view.matrices))
            n_mat = view.matrices if stacked else 1
        return Input(hf_name, tuple(takers), n_mat) if takers else None

    def _see(self, index: int, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, running = arguments[0], self._running
        if running.last is None or running.last[0] is not x:
            # q, k and v (gate and up) are given the very same tensor: sum it once
            running.last = (x, *self._sums(x))
        _, square, plain = running.last
        batch = Batch(
            square[None], None if plain is None else plain[None], np.array([x.numel() // x.shape[-1]])
        )
        if index in running.batch:  # a layer that is used twice in one pass
            batch = joined(running.batch[index], batch)
        running.batch[index] = batch

    def _see_expert(self, index: int, expert: int, x: torch.Tensor) -> None:
        """x [n_rows, n_cols] enters one expert of a stack."""
        batch = self._running.batch.get(index)
        if batch is None:
            n_mat = self.inputs[index].n_mat
            zeros = torch.zeros(n_mat, x.shape[-1], device=x.device)
            batch = Batch(zeros, zeros.clone() if self.with_means else None, np.zeros(n_mat, np.int64))
            self._running.batch[index] = batch
        square, plain = self._sums(x)
        batch.square[expert] += square
        if batch.plain is not None and plain is not None:
            batch.plain[expert] += plain
        batch.counts[expert] += x.shape[0]

    def _sums(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [..., n_cols] → Σx², Σx [n_cols] f32 over all rows."""
        return of_columns(x.reshape(-1, x.shape[-1]), self.with_means)

    def taken(self) -> dict[int, Batch]:
        """What this thread has seen since it took last, by place."""
        batch, self._running.batch, self._running.last = self._running.batch, {}, None
        return batch

    def bad_input(self, batch: Mapping[int, Batch]) -> str | None:
        """Name of the first tensor whose sums of a batch are not finite."""
        if not batch:
            return None
        finite = torch.stack([sums.square.sum() for sums in batch.values()]).isfinite().tolist()
        for index, good in zip(batch, finite, strict=True):
            if not good:
                return self.inputs[index].takers[0].name
        return None

    def with_batch(self, sums: Mapping[str, Sums], batch: Mapping[int, Batch]) -> dict[str, Sums]:
        """The sums by the name of their place, after a batch; the former stay as they are."""
        new = {self.inputs[index].name: seen for index, seen in batch.items()}
        return {**sums, **{name: with_batch(sums.get(name), seen) for name, seen in new.items()}}


def _is_linear(module: nn.Module) -> bool:
    """A layer that multiplies its input by a matrix: nn.Linear and its like, routers with a plain weight."""
    if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd) or hasattr(module, "num_embeddings"):
        return False
    return len(getattr(module.weight, "shape", ())) == 2


def _is_block_matrix(name: str) -> bool:
    return name.startswith("blk.") and name.endswith(".weight")
