"""A layer while it is walked: its weights decoded, what enters its matrices in both streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quantmill.models.capture import Course, puts_out_more
from quantmill.models.experts import by_expert, entering_down
from quantmill.models.held import HeldLayer, Pass, Reached, first_of, hold
from quantmill.models.memory import trim
from quantmill.models.norms import with_norms
from quantmill.models.places import Place, find_places, weight_of
from quantmill.models.shelf import Shelf
from quantmill.models.summing import Seen, Sum, added, require_finite, summed_up
from quantmill.qkernels import dequantize

if TYPE_CHECKING:
    from quantmill.models.walk import Walk


# Experts whose rows are put side by side, padded to the longest: few launches on a device, no idle sums on a CPU.
TOGETHER = {"cpu": 1}
TOGETHER_ON_DEVICE = 16
_LEAST_ROUTED = (
    0.05  # sum of a token's routing weights, below which experts are not asked for all that is lost
)


class Layer:
    """One layer of a walk, its weights decoded."""

    def __init__(self, walk: Walk, index: int) -> None:
        self.walk, self.index = walk, index
        self.run = Pass()
        loaded = walk.loaded
        self.held: HeldLayer = hold(walk.modules[index], walk.prefixes[index], self.run, loaded.dtype)
        self._hands_on = puts_out_more(walk.modules[index])
        # of the original stream, by batch, and by module or part of the layer
        self._outputs: Shelf[int, Any] = walk.shelf()
        self._original_inputs: Shelf[tuple[int, int], tuple[torch.Tensor, ...]] = walk.shelf()
        self._original_outputs: Shelf[tuple[int, str], Any] = walk.shelf()
        # of the changed stream, batch by batch: what parts of the layer are known to put out, and what enters the
        # matrix that was visited last, if its product is what a part puts out
        self._given: Shelf[int, dict[str, Any]] = walk.shelf()
        self._entering: Shelf[int, torch.Tensor] = walk.shelf()
        self._visited: Place | None = None
        self._left_out = False
        self._weights: dict[str, torch.Tensor] = {}  # changed GGUF tensors, [n_mat, n_rows, n_cols]
        self.places = self._find_places()

    def weight(self, name: str) -> torch.Tensor:
        """A GGUF tensor as it was: [n_mat, n_rows, n_cols] f32 on the device."""
        return weight_of(self.walk.loaded, name)

    def change_blocks(
        self, name: str, blocks: np.ndarray, type: str, factors: np.ndarray | None = None
    ) -> None:
        """The same as `change` for blocks u8 [n_mat, n_rows, row_bytes]; factors: f32 that are in them."""
        values = dequantize(torch.from_numpy(blocks), type)
        if factors is not None:
            values = values / torch.from_numpy(factors)
        self.change(name, values.to(self.walk.loaded.device))

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
            self._part_changed(hf_name)

    @torch.inference_mode()
    def _part_changed(self, hf_name: str) -> None:
        """What the part of the layer put out so far counts no more, nor what followed; its product is taken anew."""
        part = hf_name.removeprefix(f"{self.walk.prefixes[self.index]}.").partition(".")[0]
        for batch, given in self._given.items():
            if part in given:
                names = list(given)
                self._given[batch] = {name: given[name] for name in names[: names.index(part)]}
        visited, self._visited = self._visited, None
        if visited is None or visited.writes != part or visited.takers[0][1] != hf_name:
            return

        def one(batch: int) -> None:
            self.run.begin(changed=True)
            product, like = visited.module(self._entering.pop(batch)), self._original_outputs[batch, part]
            put_out = (product, *like[1:]) if isinstance(like, tuple) else product
            self._given[batch] = self._given[batch] | {part: put_out}

        self.walk.share_out(one, sorted(self._entering))

    @torch.inference_mode()
    def visit(self, place: Place, make: Callable[[], Sum]) -> Sum:
        """Sums of what enters `place` in all batches; several of `make` side by side, joined in order.

        Raises ModelError for a value that is not finite, naming layer and chunk.
        """
        self.turn_to(place)
        return summed_up(self.walk, place, make, lambda batch: self._see(place, batch))

    def turn_to(self, place: Place) -> None:
        """It is the one that is visited from now on."""
        self._entering.clear()
        # what attention puts out behind its product, to be handed on, is known when it was run
        product = place.writes is not None and place.n_mat == 1 and not self._hands_on
        self._visited = place if product and self.walk.two_streams else None

    @torch.inference_mode()
    def add(self, place: Place, parts: Sequence[tuple[Sum, Sequence[int]]]) -> None:
        """To each of some sums what enters `place`, which was turned to, in batches; side by side."""
        self.walk.share_out(
            lambda part: added(part[0], part[1], lambda batch: self._see(place, batch)), parts
        )

    def leave_out(self) -> None:
        """The changed stream goes round this layer: it is not in the model any more."""
        self._left_out = True

    @torch.inference_mode()
    def finish(self) -> None:
        """Both streams pass the layer, and what was kept of it is forgotten."""
        walk = self.walk

        def one(batch: int) -> None:
            output = changed = self._outputs[batch]
            if walk.two_streams and not self._left_out:
                self.run.begin(changed=True, given=self._given.get(batch, {}))
                changed = self._pass(walk.changed[batch], walk.changed_courses[batch])
                walk.changed[batch] = first_of(changed)
            walk.original[batch] = first_of(output)
            walk.courses[batch].passed(self.index, output)
            walk.changed_courses[batch].passed(self.index, changed)

        walk.share_out(one, walk.own)
        for kept in (self._outputs, self._original_inputs, self._original_outputs, self._given):
            kept.clear()

    def _pass(self, hidden: torch.Tensor, course: Course) -> Any:
        output = self.held.layer(hidden, **course.arguments(self.index))
        self.walk.layers_give_tuples = isinstance(output, tuple)
        return output

    @torch.inference_mode()
    def _find_places(self) -> tuple[Place, ...]:
        """Run the original stream through the layer, keep what enters every matrix, and see what writes the stream."""
        return find_places(
            self.walk.loaded, self.held, self.walk.original[self.walk.own[0]], *self._observed(False)
        )

    @torch.inference_mode()
    def with_norms(self) -> tuple[Place, ...]:
        """The places, now with the norms before them."""
        self.places = with_norms(self, self.places)
        return self.places

    @torch.inference_mode()
    def again(self) -> None:
        """Run the only stream through the layer once more, with the changed weights; it goes on with what comes out."""
        assert not self.walk.two_streams
        self._observed(changed=True)

    def _observed(self, changed: bool) -> Any:
        """What was seen of the first batch here; what enters matrices and what is put out is kept of all."""
        walk = self.walk

        def one(batch: int) -> Any:
            self.run.begin(changed=changed, noting=True)
            out = self._pass(walk.original[batch], walk.courses[batch])
            self._outputs[batch] = out
            self._original_inputs.put({(batch, id(module)): inputs for module, inputs in self.run.seen})
            self._original_outputs.put({(batch, part): put_out for part, put_out in self.run.outputs.items()})
            return (out, self.run.seen, self.run.outputs, self.run.products) if batch == walk.own[0] else None

        out, *others = walk.share_out(one, walk.own)[0]
        trim()  # what is kept lies between what came and went
        return first_of(out), *others

    def entering(self, place: Place, batch: int) -> tuple[torch.Tensor, ...]:
        """What enters the module of a place in the original stream; of experts also which and with what weights."""
        return self._original_inputs[batch, id(place.module)]

    def output(self, batch: int) -> torch.Tensor:
        """What the layer puts out in the original stream, [n_seq, n_ctx, n_hidden]."""
        return first_of(self._outputs[batch])

    def part_output(self, batch: int, part: str) -> torch.Tensor:
        """The same of a part of the layer that holds matrices, such as its attention."""
        return first_of(self._original_outputs[batch, part])

    def _see(self, place: Place, batch: int) -> Iterator[Seen]:
        original = self._original_inputs[batch, id(place.module)]
        outputs: dict[str, Any] = {}
        inputs = original
        if self.walk.two_streams:
            self.run.begin(changed=True, until=place.module, given=self._given.get(batch, {}))
            try:
                self._pass(self.walk.changed[batch], self.walk.changed_courses[batch])
            except Reached:
                inputs, outputs = self.run.seen[-1][1], self.run.outputs
            else:
                raise AssertionError("a place of the original stream was not reached by the changed one")
            self._given[batch] = outputs  # parts before this place will put out the same
            if self._visited is not None:
                self._entering[batch] = inputs[0]
        for part in (*original, *inputs):
            require_finite(self.walk, batch, part, place.takers[0][0], f"layer {self.index}")
        if place.n_mat == 1:
            x, y = (stream[0].flatten(0, -2).float()[None] for stream in (original, inputs))
            residual = self._residual(place, batch, outputs)
            yield Seen(x, y, (0,), (x.shape[1],), None if residual is None else residual[None])
        else:
            residual = self._residual(place, batch, outputs)
            if residual is not None:
                residual = self._with_routing(place, batch, residual, original[0], *inputs[1:])
            yield from self._see_experts(place, residual, original[0], *inputs[:2])

    def _see_experts(
        self,
        place: Place,
        residual: torch.Tensor | None,
        original: torch.Tensor,
        changed: torch.Tensor,
        index: torch.Tensor,
    ) -> Iterator[Seen]:
        """The tokens that the changed stream routes to each expert, in both streams; those with most first."""
        order, ends = by_expert(index, place.n_mat)
        begins = [0, *ends[:-1]]
        counts = [end - begin for begin, end in zip(begins, ends, strict=True)]
        busiest = sorted(range(place.n_mat), key=lambda expert: (-counts[expert], expert))
        busy = [expert for expert in busiest if counts[expert]]
        step = TOGETHER.get(order.device.type, TOGETHER_ON_DEVICE)
        for first in range(0, len(busy), step):
            experts = busy[first : first + step]
            slots = torch.nn.utils.rnn.pad_sequence(
                [order[begins[e] : ends[e]] for e in experts], batch_first=True, padding_value=-1
            )
            tokens = slots.clamp_min(0) // index.shape[1]
            real = (slots >= 0).unsqueeze(-1)
            streams = []
            for hidden, as_changed in ((original, False), (changed, self.walk.two_streams)):
                rows = hidden[tokens]
                if place.down:
                    self.run.begin(changed=as_changed)
                    rows = entering_down(place.module, experts, rows)
                streams.append(rows.float() * real)
            x, y = streams
            past = None if residual is None else residual[tokens] * real
            yield Seen(x, y, tuple(experts), tuple(counts[e] for e in experts), past)

    def _residual(self, place: Place, batch: int, outputs: dict[str, Any]) -> torch.Tensor | None:
        if place.writes is None or not self.walk.two_streams:
            return None
        difference = self.walk.original[batch] - self.walk.changed[batch]
        for name, output in outputs.items():  # parts that have written before this one
            if name in self._writers and name != place.writes:
                before = first_of(self._original_outputs[batch, name])
                difference = difference + before - first_of(output)
        return difference.flatten(0, -2).float()

    def _with_routing(
        self,
        place: Place,
        batch: int,
        residual: torch.Tensor,
        original: torch.Tensor,
        index: torch.Tensor,
        routed: torch.Tensor,
    ) -> torch.Tensor:
        """What each of a token's experts should add to its product: [n_tokens, n_out].

        Beside what the streams differ by, what the original's experts would lose by the changed routing alone; shared
        by the experts, which are added up with weights.
        """
        assert place.writes is not None
        self.run.begin(changed=False)
        rerouted = place.module(original, index, routed)
        output = first_of(self._original_outputs[batch, place.writes])
        lost = (output.flatten(0, -2) - rerouted.view(-1, output.shape[-1])).float()
        return (residual + lost) / routed.sum(-1, keepdim=True).float().clamp_min(_LEAST_ROUTED)

    @property
    def _writers(self) -> set[str]:
        return {place.writes for place in self.places if place.writes is not None}
