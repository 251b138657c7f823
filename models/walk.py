"""Run a model layer by layer, in two streams: as it was, and behind the layers that have been changed so far.

    walk = Walk(loaded, chunks, share_out)
    for layer in walk.layers():
        for place in layer.places:                    # in the order in which the layer comes to them
            sums = layer.visit(place, Sums)           # what enters there, of both streams
            layer.change("blk.0.attn_q.weight", f32)  # the changed stream goes through this from now on

The layers are transformers' own, called one by one with the arguments that a pass of the whole model gives them.
A layer's weights are decoded when it is walked and forgotten with it. How chunks are grouped follows from the model
and the options, never from free memory: the sums, and whatever is made of them, are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from quantmill.models.capture import Call, capture, equal, named_layers
from quantmill.models.errors import ModelError
from quantmill.models.experts import by_expert, entering_down
from quantmill.models.held import HeldLayer, Pass, Reached, hold
from quantmill.models.model import LoadedModel
from quantmill.models.places import Place, find_places, taking
from quantmill.qkernels import to_float32

BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_ON_DEVICE = 16384
SUM_BYTES = 1 << 30  # of second moments being summed at a time, by all threads

Item = TypeVar("Item")
Out = TypeVar("Out")
ShareOut = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]  # map in threads, in order


@dataclass(frozen=True)
class Seen:
    """What enters a matrix in one batch: rows [n, n_cols] f32 of both streams, the same tokens in each.

    expert: whose rows they are; residual: what both streams carry past the matrix, [n, n_out] of the original less the
    changed one; None where the layer does not simply add the product to its stream.
    """

    original: torch.Tensor
    changed: torch.Tensor
    expert: int = 0
    residual: torch.Tensor | None = None


class Summing(Protocol):
    """Sums over batches; `add` is told the batch's number."""

    def add(self, batch: int, seen: Seen) -> None: ...
    def join(self, other: Any) -> None: ...


Sum = TypeVar("Sum", bound=Summing)


class Walk:
    """chunks [n_chunk, n_ctx] i32. two_streams: False runs the original only (both streams of Seen are it).

    share_out: a map, perhaps in threads; each item is computed by one torch thread.
    """

    def __init__(
        self, loaded: LoadedModel, chunks: np.ndarray, share_out: ShareOut, two_streams: bool = True
    ) -> None:
        self.loaded, self.share_out, self.two_streams = loaded, share_out, two_streams
        self.modules = named_layers(loaded.model)[1]
        names = {id(module): name for name, module in loaded.model.named_modules()}
        self.prefixes = [names[id(layer)] for layer in self.modules]
        self.batches = self._batches(chunks)
        self.first_chunks = np.cumsum([0, *(len(batch) for batch in self.batches)])[:-1]
        hidden, self.calls = self._enter()
        self.original = hidden
        self.changed = list(hidden) if two_streams else hidden

    def _batches(self, chunks: np.ndarray) -> list[torch.Tensor]:
        n_chunk, n_ctx = chunks.shape
        tokens = torch.from_numpy(chunks.astype(np.int64))
        vocabulary = self.loaded.tokenizer
        if vocabulary.add_bos and vocabulary.bos is not None:
            tokens[:, 0] = vocabulary.bos
        if int(tokens.max()) >= self.loaded.n_vocab:
            raise ModelError(
                f"token {int(tokens.max())} of the text is outside the model's vocabulary of {self.loaded.n_vocab}; "
                "the tokenizer belongs to another model"
            )
        together = chunks_together(self.loaded.device.type, n_chunk, n_ctx)
        return list(tokens.to(self.loaded.device).split(together))

    @torch.inference_mode()
    def _enter(self) -> tuple[list[torch.Tensor], list[Call]]:
        """What enters the first layer, and what the model gives each layer beside it."""
        calls = capture(self.loaded.model, self.modules, self.batches[0][:1])
        again = capture(self.loaded.model, self.modules, self.batches[-1][-1:])
        for call, other in zip(calls, again, strict=True):
            if not equal(call.arguments, other.arguments):
                raise ModelError(
                    f"{self.loaded.architecture}: its layers are given more than the hidden states of a text, "
                    "so they cannot be walked one by one"
                )
        return [capture(self.loaded.model, self.modules, ids)[0].hidden for ids in self.batches], calls

    def layers(self) -> Iterator[Layer]:
        """Each layer in turn, both streams before it; when the next is asked for, both have passed this one."""
        for index in range(len(self.modules)):
            layer = Layer(self, index)
            try:
                yield layer
                layer.finish()
            finally:
                layer.held.close()

    def widest(self) -> tuple[int, int]:
        """Columns of the largest square of second moments, and how many of them a stack of experts needs."""
        views = (self.loaded.table.views[name] for name in walked_names(self.loaded))
        return max((view.shape[-1], view.matrices) for view in views)

    def input_columns(self) -> int:
        """Of all that one layer's matrices are given, at most."""
        table, sums = self.loaded.table, dict.fromkeys(self.prefixes, 0)
        for hf_name, shape in table.shapes.items():
            layer = next((prefix for prefix in self.prefixes if hf_name.startswith(f"{prefix}.")), None)
            if layer is not None and len(shape) > 1:
                sums[layer] += shape[-1]
        return max(sums.values())


def chunks_together(device: str, n_chunk: int, n_ctx: int) -> int:
    """How many chunks are run at a time: by the device's kind and the text, and so that there are some batches."""
    most = BATCH_TOKENS.get(device, BATCH_TOKENS_ON_DEVICE)
    return max(1, min(most // n_ctx, -(-n_chunk // 12)))


def walked_names(loaded: LoadedModel) -> dict[str, int]:
    """GGUF tensors that a walk may come to → their matrices (experts)."""
    names = {id(module): name for name, module in loaded.model.named_modules()}
    prefixes = tuple(f"{names[id(layer)]}." for layer in named_layers(loaded.model)[1])
    return {
        use.name: loaded.table.views[use.name].matrices
        for hf_name in loaded.table.uses
        if hf_name.startswith(prefixes)
        for use in taking(loaded, hf_name)
    }


class Layer:
    """One layer of a walk, its weights decoded."""

    def __init__(self, walk: Walk, index: int) -> None:
        self.walk, self.index = walk, index
        self.run = Pass()
        loaded = walk.loaded
        self.held: HeldLayer = hold(walk.modules[index], walk.prefixes[index], self.run, loaded.dtype)
        self._arguments = walk.calls[index].arguments
        self._original_inputs: list[dict[int, tuple[torch.Tensor, ...]]] = []
        self._original_outputs: list[dict[str, torch.Tensor]] = []
        self._left_out = False
        self._weights: dict[str, torch.Tensor] = {}  # changed GGUF tensors, [n_mat, n_rows, n_cols]
        self.places = self._find_places()

    def weight(self, name: str) -> torch.Tensor:
        """A GGUF tensor as it was: [n_mat, n_rows, n_cols] f32 on the device."""
        loaded = self.walk.loaded
        assert loaded.source is not None
        view = loaded.table.views[name]
        spec = next(spec for spec in loaded.source.specs() if spec.name == name)
        values = torch.from_numpy(to_float32(loaded.source.read(name), spec.type).copy())
        return values.view(view.matrices, -1, view.shape[-1]).to(loaded.device)

    def change(self, name: str, values: torch.Tensor) -> None:
        """The changed stream takes `values` [n_mat, n_rows, n_cols] f32 for the GGUF tensor `name` from now on."""
        table = self.walk.loaded.table
        self._weights[name] = values
        for hf_name, uses in table.uses.items():
            if hf_name not in self.held.matrices or all(use.name != name for use in uses):
                continue
            holder = self.held.matrices[hf_name]
            changed = {use.name: self._weights.get(use.name) for use in uses}

            def read(gguf_name: str, changed: dict[str, torch.Tensor | None] = changed) -> np.ndarray:
                found = changed[gguf_name]
                found = self.weight(gguf_name) if found is None else found
                return found.reshape(table.views[gguf_name].shape).cpu().numpy()

            made = torch.from_numpy(table.to_hf(hf_name, read).astype(np.float32))
            holder.changed = made.to(holder.original)

    @torch.inference_mode()
    def visit(self, place: Place, make: Callable[[], Sum]) -> Sum:
        """Sums of what enters `place` in all batches; several of `make` side by side, joined in order.

        Raises ModelError for a value that is not finite, naming layer and chunk.
        """
        n = len(self.walk.batches)
        bytes_each = 16 * place.n_mat * place.n_cols * place.n_cols
        n_groups = max(1, min(8, n, SUM_BYTES // bytes_each))
        if self.walk.loaded.device.type != "cpu":
            n_groups = 1
        bounds = [n * i // n_groups for i in range(n_groups + 1)]

        def one(group: int) -> Sum:
            sums = make()
            for batch in range(bounds[group], bounds[group + 1]):
                for seen in self._see(place, batch):
                    sums.add(batch, seen)
            return sums

        first, *rest = self.walk.share_out(one, range(n_groups))
        for other in rest:
            first.join(other)
        return first

    def leave_out(self) -> None:
        """The changed stream goes round this layer: it is not in the model any more."""
        self._left_out = True

    @torch.inference_mode()
    def finish(self) -> None:
        """Both streams pass the layer."""
        walk = self.walk

        def one(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
            original = self._outputs[batch] if self._outputs else self._pass(walk.original[batch])
            if not walk.two_streams or self._left_out:
                return original, walk.changed[batch]
            self.run.begin(changed=True)
            return original, self._pass(walk.changed[batch])

        done = walk.share_out(one, range(len(walk.batches)))
        walk.original = [original for original, _ in done]
        walk.changed = [changed for _, changed in done] if walk.two_streams else walk.original

    def _pass(self, hidden: torch.Tensor) -> torch.Tensor:
        out = self.held.layer(hidden, **self._arguments)
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def _find_places(self) -> tuple[Place, ...]:
        """Run the original stream through the layer, keep what enters every matrix, and see what writes the stream."""
        walk = self.walk

        def one(batch: int) -> Any:
            self.run.begin(changed=False, noting=True)
            out = self._pass(walk.original[batch])
            return out, self.run.seen, self.run.outputs

        done = walk.share_out(one, range(len(walk.batches)))
        self._outputs = [out for out, _, _ in done]
        self._original_inputs = [{id(m): inputs for m, inputs in seen} for _, seen, _ in done]
        self._original_outputs = [outputs for _, _, outputs in done]
        return find_places(walk.loaded, self.held, walk.original[0], *done[0])

    def _see(self, place: Place, batch: int) -> Iterator[Seen]:
        original = self._original_inputs[batch][id(place.module)]
        outputs: dict[str, torch.Tensor] = {}
        inputs = original
        if self.walk.two_streams:
            self.run.begin(changed=True, until=place.module)
            try:
                self._pass(self.walk.changed[batch])
            except Reached:
                inputs, outputs = self.run.seen[-1][1], self.run.outputs
            else:
                raise AssertionError("a place of the original stream was not reached by the changed one")
        for part in (*original, *inputs):
            if part.is_floating_point() and not bool(part.isfinite().all()):
                raise self._not_finite(place, batch, part)
        if place.n_mat == 1:
            x, y = original[0].flatten(0, -2).float(), inputs[0].flatten(0, -2).float()
            yield Seen(x, y, 0, self._residual(place, batch, outputs))
        else:
            yield from self._see_experts(place, original[0], *inputs)

    def _see_experts(
        self, place: Place, original: torch.Tensor, changed: torch.Tensor, index: torch.Tensor
    ) -> Iterator[Seen]:
        """The tokens that the changed stream routes to each expert, in both streams."""
        order, ends = by_expert(index, place.n_mat)
        begin = 0
        for expert, end in enumerate(ends[: place.n_mat]):
            if end > begin:
                tokens = order[begin:end] // index.shape[1]
                x, y = original[tokens], changed[tokens]
                if place.down:
                    self.run.begin(changed=False)
                    x = entering_down(place.module, expert, x)
                    self.run.begin(changed=self.walk.two_streams)
                    y = entering_down(place.module, expert, y)
                yield Seen(x.float(), y.float(), expert)
            begin = end

    def _residual(self, place: Place, batch: int, outputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if place.writes is None or not self.walk.two_streams:
            return None
        difference = self.walk.original[batch] - self.walk.changed[batch]
        for name, output in outputs.items():  # parts that have written before this one
            if name in self._writers and name != place.writes:
                difference = difference + self._original_outputs[batch][name] - output
        return difference.flatten(0, -2).float()

    @property
    def _writers(self) -> set[str]:
        return {place.writes for place in self.places if place.writes is not None}

    def _not_finite(self, place: Place, batch: int, part: torch.Tensor) -> ModelError:
        name = place.takers[0][0]
        rows = part if part.ndim == 3 else part.view(len(self.walk.batches[batch]), -1, part.shape[-1])
        bad = ~rows.isfinite().flatten(1).all(1)
        chunk = int(self.walk.first_chunks[batch]) + int(bad.nonzero()[0])
        return ModelError(
            f"{name}: what enters it is not finite in chunk {chunk + 1} (layer {self.index}); the model or its weights "
            "overflow there: look at the text of that chunk, or choose a wider type for the tensors before it"
        )
