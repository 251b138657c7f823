"""Run a model layer by layer, in two streams: as it was, and behind the layers that have been changed so far.

    walk = Walk(loaded, chunks, share_out)
    for layer in walk.layers():
        for place in layer.places:                    # in the order in which the layer comes to them
            sums = layer.visit(place, Sums)           # what enters there, of both streams
            layer.change("blk.0.attn_q.weight", f32)  # the changed stream goes through this from now on
    output = walk.output()                            # behind them; None where it is the embeddings'

The layers are transformers' own, called one by one with the arguments that a pass of the whole model gives them.
A layer's weights are decoded when it is walked and forgotten with it. How chunks are grouped follows from the model
and the options, never from free memory: the sums, and whatever is made of them, are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from quantmill.models.capture import Course, enter, named_layers
from quantmill.models.held import Pass, first_of, hold
from quantmill.models.model import LoadedModel
from quantmill.models.packed import is_grouped
from quantmill.models.places import taking
from quantmill.models.scoring import input_ids
from quantmill.models.shelf import Shelf
from quantmill.models.walked_layer import Layer
from quantmill.models.walked_output import Output, output_names

BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_ON_DEVICE = 16384

ShareOut = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]  # map in threads, in order


class Walk:
    """chunks [n_chunk, n_ctx] i32. two_streams: False runs the original only (both streams of Seen are it).

    share_out: a map, perhaps in threads; each item is computed by one torch thread. own: numbers of the batches that
    are run here, None: all; of others there are no streams. in_main_memory: what is kept of batches lies there, and
    comes to the device for its use; for a device that has not so much.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        chunks: np.ndarray,
        share_out: ShareOut,
        two_streams: bool = True,
        own: Sequence[int] | None = None,
        in_main_memory: bool = False,
    ) -> None:
        self.loaded, self.chunks, self.share_out, self.two_streams = loaded, chunks, share_out, two_streams
        self.modules = named_layers(loaded.model)[1]
        names = {id(module): name for name, module in loaded.model.named_modules()}
        self.prefixes = [names[id(layer)] for layer in self.modules]
        self.batches = batches_of(loaded, chunks)
        self.own = list(range(len(self.batches)) if own is None else own)
        self.first_chunks = np.cumsum([0, *(len(batch) for batch in self.batches)])[:-1]
        self._away = loaded.device if in_main_memory else None
        self.original: Shelf[int, torch.Tensor] = self.shelf()
        self.courses = self._enter()
        self.changed = self.original
        if two_streams:
            self.changed = self.shelf()
            self.changed.put(self.original)
        self.changed_courses = {batch: course.again() for batch, course in self.courses.items()}
        self.layers_give_tuples = False  # known when one was run

    def shelf(self) -> Shelf[Any, Any]:
        """For what is kept of batches."""
        return Shelf(self._away)

    @torch.inference_mode()
    def _enter(self) -> dict[int, Course]:
        """Let all batches stand before the first layer; what the model gives each layer beside them."""
        entering, courses = enter(
            self.loaded.model, self.modules, [self.batches[batch] for batch in self.own]
        )
        self.original.put(dict(zip(self.own, entering, strict=True)))
        return dict(zip(self.own, courses, strict=True))

    def adopt(self, other: Walk) -> None:
        """Run the batches of another walk, which stands before the same layer, from now on; not within a layer."""
        for batch in other.own:
            self.original[batch] = other.original[batch]
            self.changed[batch] = other.changed[batch]
            self.courses[batch] = other.courses[batch]
            self.changed_courses[batch] = other.changed_courses[batch]
        self.own = sorted({*self.own, *other.own})
        self.layers_give_tuples |= other.layers_give_tuples

    @torch.inference_mode()
    def pass_layer(self, index: int) -> list[dict[str, Any]]:
        """Take the original stream through a layer, and nothing else; what the layer's parts put out, by batch."""
        run = Pass()
        with self.loaded.layer(index):
            held = hold(self.modules[index], self.prefixes[index], run, self.loaded.dtype)

            def one(batch: int) -> dict[str, Any]:
                run.begin(changed=False)
                output = held.layer(self.original[batch], **self.courses[batch].arguments(index))
                self.courses[batch].passed(index, output)
                self.original[batch] = first_of(output)
                return run.outputs

            try:
                return self.share_out(one, self.own)
            finally:
                held.close()

    def layers(self, first: int = 0) -> Iterator[Layer]:
        """Each layer in turn, both streams before it; when the next is asked for, both have passed this one.

        first: begin there; the streams are what the caller has made of them.
        """
        for index in range(first, len(self.modules)):
            with self.inside(index) as layer:
                yield layer
                layer.finish()

    @contextmanager
    def inside(self, index: int) -> Iterator[Layer]:
        """A layer that both streams stand before; they have passed it when it was told to `finish`."""
        with self.loaded.layer(index):
            layer = Layer(self, index)
            try:
                yield layer
            finally:
                layer.held.close()

    def output(self) -> Output | None:
        """The output matrix, when both streams have passed all layers; None for one that is tied."""
        names = output_names(self.loaded)
        return None if names is None else Output(self, *names)


def batches_of(loaded: LoadedModel, chunks: np.ndarray) -> list[torch.Tensor]:
    """Tokens [n_seq, n_ctx] i64 on the device. Raises ModelError for tokens that the model does not know."""
    n_chunk, n_ctx = chunks.shape
    together = chunks_together(loaded.device.type, n_chunk, n_ctx)
    return list(input_ids(loaded, chunks).to(loaded.device).split(together))


def chunks_together(device: str, n_chunk: int, n_ctx: int) -> int:
    """How many chunks are run at a time: by the device's kind and the text, and so that there are some batches."""
    most = BATCH_TOKENS.get(device, BATCH_TOKENS_ON_DEVICE)
    return max(1, min(most // n_ctx, -(-n_chunk // 12)))


def walked_names(loaded: LoadedModel) -> dict[str, int]:
    """GGUF tensors that a walk may come to → their matrices (experts)."""
    modules = dict(loaded.model.named_modules())
    names = {id(module): name for name, module in modules.items()}
    prefixes = tuple(f"{names[id(layer)]}." for layer in named_layers(loaded.model)[1])
    return {
        use.name: loaded.table.views[use.name].matrices
        for hf_name in loaded.table.uses
        if hf_name.startswith(prefixes) and not is_grouped(modules.get(hf_name.rpartition(".")[0]))
        for use in taking(loaded, hf_name)
    }
