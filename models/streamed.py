"""Run a model that is larger than the memory: its layers are read one at a time, and all sequences pass each.

    loaded = load_streamed("model-Q4_K_M.gguf", device="cuda")
    for name, take in loaded.layers(batches):      # batches of ids [n_seq, n_ctx]
        for number in range(len(batches)):
            take(number)                           # through the layer called `name`
    logits = loaded.logits(batches[0])             # those that the whole model gives; `prepare` is all of the above

What is held is one layer, in the blocks it is stored in, what lies outside the layers (embeddings, output), and the
hidden states of all batches, 4 bytes × tokens × hidden size. The file is read once. A layer runs with the modules that
the model in memory has, on the same batches, so the numbers are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantmill.gguf_io.source import TensorSource, open_source
from quantmill.models.attention import with_short_attention
from quantmill.models.capture import enter, named_layers
from quantmill.models.doors import Doors
from quantmill.models.errors import ModelError
from quantmill.models.fill import Filler
from quantmill.models.held import first_of
from quantmill.models.memory import trim
from quantmill.models.model import LoadedModel, asked, built
from quantmill.models.overflow import damaged
from quantmill.models.tokenizer import Tokenizer
from quantmill.models.workers import ALONE, Workers

Take = Callable[[int], torch.Tensor]


class _Running(threading.local):
    """What this thread's pass takes for the output of the last layer, as the layer gives it."""

    hidden: Any = None


@dataclass
class StreamedModel(LoadedModel):
    """A LoadedModel without its layers. n_bytes: of what lies outside them.

    states: hidden states behind the last layer, by the ids of their batch, until their logits are asked for; one for
    each batch of these ids, for a text may repeat itself.
    Several threads may take batches, or ask for logits; those of ids that were not taken pass one after the other.
    """

    states: dict[bytes, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._path, self._modules = named_layers(self.model)
        self._running = _Running()
        self._doors = Doors()

    @property
    def n_layers(self) -> int:
        return len(self._modules)

    def layers(self, batches: Sequence[torch.Tensor]) -> Iterator[tuple[str, Take]]:
        """Each layer's name and what takes a batch through it; every batch, before the next layer is asked for."""
        if not batches:  # a run that was stopped behind its last batch has none left
            return
        batches = [ids.to(self.device) for ids in batches]
        with torch.inference_mode():
            entering, courses = enter(self.model, self._modules, batches)
        states: list[Any] = list(entering)
        for index in range(self.n_layers):
            with self.layer(index) as layer:

                @torch.inference_mode()
                def take(number: int, index: int = index, layer: nn.Module = layer) -> torch.Tensor:
                    kind, course = self.products, courses[number]
                    run = layer if kind is None else with_short_attention(layer, kind)
                    states[number] = run(first_of(states[number]), **course.arguments(index))
                    course.passed(index, states[number])
                    return first_of(states[number])

                yield f"{self._path}.{index}", take
            trim()
        for ids, state in zip(batches, states, strict=True):
            self.states.setdefault(_key(ids), []).append(state)
        for layer in self._modules:  # from now on the model begins behind its layers
            object.__setattr__(layer, "forward", self._handed_on)

    def prepare(
        self,
        batches: Sequence[torch.Tensor],
        advance: Callable[[int, str], None] = lambda layers, name: None,
        workers: Workers = ALONE,
    ) -> None:
        """Take batches whose logits will be asked for through all layers. advance: told of each layer.

        Raises ModelError for states that are not finite, naming the layer.
        """
        for name, take in self.layers(batches):

            def one(number: int, name: str = name, take: Take = take) -> None:
                hidden = take(number)
                if not bool(torch.isfinite(torch.stack((hidden.amin(), hidden.amax()))).all()):
                    why = damaged(self.source)
                    raise ModelError(
                        f"{self.path}: what {name} puts out is not finite" + (f"; {why}" if why else "")
                    )

            workers.map(one, range(len(batches)))
            advance(1, self.path.name)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """A layer with its weights, which are given back with it."""
        assert self.source is not None
        prefix = f"{self._path}.{index}."
        layer = self._modules[index]
        bare = [(m, m._parameters, m._buffers, m._modules) for m in layer.modules()]
        for module, parameters, buffers, modules in bare:
            vars(module).update(_parameters={**parameters}, _buffers={**buffers}, _modules={**modules})
        try:
            _filler(self).fill_part(lambda name: name.startswith(prefix))
            yield layer
        finally:
            for module, parameters, buffers, modules in bare:
                vars(module).update(_parameters=parameters, _buffers=buffers, _modules=modules)
            used = {
                use.name for name, uses in self.table.uses.items() if name.startswith(prefix) for use in uses
            }
            for name in used:
                self.source.release(name)

    def logits(self, ids: torch.Tensor, first: int = 0) -> torch.Tensor:
        """As LoadedModel.logits. Ids that were not taken through the layers before pass them now, alone."""
        with self.behind(ids):
            return super().logits(ids, first)

    @contextmanager
    def behind(self, ids: torch.Tensor) -> Iterator[None]:
        """The model gives for `ids` what follows from the states behind its layers, which are then forgotten."""
        self._running.hidden = self._state(ids)
        try:
            with self._doors.among_others():
                yield
        finally:
            self._running.hidden = None

    def _state(self, ids: torch.Tensor) -> Any:
        """Taken out. Ids that were not announced pass the layers while no other thread is behind them."""
        key = _key(ids)
        while True:
            try:
                return self.states[key].pop()  # one step, also for several threads
            except (KeyError, IndexError):  # a thread with the same ids may take what this one prepares
                with self._doors.alone():
                    self.prepare([ids])

    def _handed_on(self, *inputs: Any, **named: Any) -> Any:
        return self._running.hidden

    def _first_bad_module(self, ids: torch.Tensor) -> str:
        return "every layer's output is finite, only the final logits overflow"


def _key(ids: torch.Tensor) -> bytes:
    return bytes(str(tuple(ids.shape)), "ascii") + ids.cpu().numpy().tobytes()


def _filler(loaded: LoadedModel) -> Filler:
    assert loaded.source is not None
    specs = {spec.name: spec for spec in loaded.source.specs()}
    return Filler(
        loaded.model, loaded.table, loaded.source, specs, loaded.device, loaded.dtype, loaded.products
    )


def load_streamed(
    path: str | Path, device: str = "cpu", dtype: str = "float32", tokenizer_path: str | Path | None = None
) -> StreamedModel:
    """As models.model.load with `converted`, without the layers.

    Raises ModelError also for a model that has no list of layers.
    """
    target, compute, products, given = asked(device, dtype, tokenizer_path)
    return streamed_source(open_source(path), Path(path), target, compute, given, products)


def streamed_source(
    source: TensorSource,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    given: Tokenizer | None = None,
    products: str | None = None,
) -> StreamedModel:
    """As models.model.from_source, without the layers."""

    def is_outside(model: Any) -> Callable[[str], bool]:
        prefix = f"{named_layers(model)[0]}."
        return lambda name: not name.startswith(prefix)

    return built(StreamedModel, source, path, device, dtype, given, is_outside, products)
