"""A model and a text, opened to be pruned: predictions of the original, chunks to fit and to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from quantmill import __version__
from quantmill.calibrate.prune_influence import Influence, influence_of
from quantmill.gguf_io import TensorSource, open_source
from quantmill.imatrix import chat
from quantmill.jobs.compensate_plan import digest
from quantmill.jobs.edited import pruned_model
from quantmill.jobs.edits import NO_EDITS, Edits
from quantmill.jobs.held_predictions import predictions_note
from quantmill.jobs.memory import Memory, fingerprint
from quantmill.jobs.polish_checks import Chunks, chunks_of
from quantmill.jobs.prune_request import CHUNKS, MEASURED, Request
from quantmill.jobs.runnable import require_runnable
from quantmill.jobs.watcher import Watcher
from quantmill.measure.damage import Predictions, scored_prefix
from quantmill.measure.divergence import TokenScores
from quantmill.measure.perplexity import perplexity
from quantmill.models.devices import usable_device
from quantmill.models.model import LoadedModel, from_source
from quantmill.models.scoring import targets
from quantmill.models.tokenizer import from_metadata
from quantmill.models.workers import Workers, working
from quantmill.qkernels.cache import cache_dir


class Session:
    """What was measured is kept between runs, under a hash of model, text and version."""

    def __init__(
        self, request: Request, source: TensorSource, chunks: Chunks, watcher: Watcher, workers: Workers
    ) -> None:
        self.request, self.source, self.chunks, self.watcher = request, source, chunks, watcher
        self.workers = workers
        self.device = usable_device(request.device)
        n = len(chunks.trained)
        self.choosing = chunks.trained[np.arange(min(MEASURED, n)) * n // min(MEASURED, n)]
        self._memory = Memory(cache_dir("pruning"))
        self._key = self._memory.key("scan", self._made_from())
        self._facts = self._memory.facts(self._key) or {"sets": {}}

    def _made_from(self) -> dict[str, object]:
        return {
            "version": __version__,
            "model": fingerprint(self.source.paths),
            "folder": str(Path(self.request.model).resolve()),
            "text": digest(self.chunks.trained),
            "measured": MEASURED,
        }

    def known(self, layers: tuple[int, ...], edits: Edits = NO_EDITS) -> tuple[float, float] | None:
        """KL divergence and perplexity without `layers`, as far as they were measured before."""
        found = self._facts["sets"].get(_name(layers, edits))
        return None if found is None else (float(found[0]), float(found[1]))

    def keep(self, layers: tuple[int, ...], kld: float, ppl: float, edits: Edits = NO_EDITS) -> None:
        self._facts["sets"][_name(layers, edits)] = [kld, ppl]
        self._memory.keep(self._key, self._facts)

    def say_memory(self) -> None:
        """What is held beside models: log p of the whole vocabulary at every place that is scored."""
        texts = [
            self.chunks.held_back,
            *([self.choosing] if self.request.n_layers or self.request.experts else []),
        ]
        n_scored = sum(targets(chunks).size for chunks in texts)
        if line := predictions_note(self.source, n_scored, "the damage is measured"):
            self.watcher.note(f"{line}; fewer --chunks take less")

    @cached_property
    def loaded(self) -> LoadedModel:
        return self._load(self.source)

    def pruned(self, edits: Edits, layers: tuple[int, ...] = ()) -> LoadedModel:
        return self._load(pruned_model(self.source, edits, layers))

    def _load(self, source: TensorSource) -> LoadedModel:
        return from_source(source, Path(self.request.model), self.device, torch.float32)

    @cached_property
    def influence(self) -> Influence:
        """Of the chunks that are fitted to."""
        kept = self._facts.get("influence")
        if kept is not None:
            saliency = {int(layer): np.array(found) for layer, found in kept["saliency"].items()}
            routed = {int(layer): np.array(found) for layer, found in kept["routed"].items()}
            return Influence(np.array(kept["cosines"]), saliency, routed)
        self.watcher.began("influence", len(self.chunks.trained), "chunks")
        found = influence_of(self.loaded, self.chunks.trained, self.watcher.progressed)
        self._facts["influence"] = {
            "cosines": found.cosines.tolist(),
            "saliency": {layer: values.tolist() for layer, values in found.saliency.items()},
            "routed": {layer: values.tolist() for layer, values in found.routed.items()},
        }
        self._memory.keep(self._key, self._facts)
        return found

    @cached_property
    def held_back(self) -> Predictions:
        """The original's predictions of the chunks that judge."""
        return self._predictions("original", self.chunks.held_back)

    @cached_property
    def compared(self) -> Predictions:
        """Of the chunks that candidates are compared on."""
        return self._predictions("original", self.choosing)

    @property
    def own_ppl(self) -> float:
        """The original's perplexity of the chunks that candidates are compared on."""
        if "ppl" not in self._facts:
            self._facts["ppl"] = perplexity(self.compared.nll).value
            self._memory.keep(self._key, self._facts)
        return float(self._facts["ppl"])

    def _predictions(self, what: str, chunks: np.ndarray) -> Predictions:
        self.watcher.began(what, len(chunks), "chunks")
        found = Predictions(scored_prefix(self.loaded, chunks, self.workers.map), chunks)
        self.watcher.progressed(len(chunks))
        return found

    def judged(self, model: LoadedModel, what: str) -> TokenScores:
        """The scores of a pruned model on the chunks that judge."""
        chunks = self.chunks.held_back
        wanted = self.held_back
        self.watcher.began(what, len(chunks), "chunks")
        scores = wanted.scores(scored_prefix(model, chunks, self.workers.map))
        self.watcher.progressed(len(chunks))
        return scores

    @property
    def n_layers(self) -> int:
        metadata = self.source.metadata
        return int(metadata.value(f"{metadata.value('general.architecture')}.block_count"))

    def layer_bytes(self) -> dict[int, int]:
        """Bytes of each layer's tensors in the model."""
        found: dict[int, int] = {}
        for spec in self.source.specs():
            if spec.name.startswith("blk."):
                layer = int(spec.name.split(".")[1])
                found[layer] = found.get(layer, 0) + spec.n_bytes
        return found


def _name(layers: tuple[int, ...], edits: Edits) -> str:
    name = ",".join(map(str, layers))
    return name if edits is NO_EDITS else f"{name} {edits.digest[:16]}"


@contextmanager
def session(request: Request, watcher: Watcher) -> Iterator[Session]:
    """Raises JobError, ImatrixError or OSError for a text, GGUFError or ModelError for a model that does not serve."""
    with ExitStack() as stack:
        source = open_source(request.model)
        stack.callback(source.close)
        require_runnable(request.model, source)
        chunks = chunks_of(
            request.calibration,
            from_metadata(source.metadata),
            _renderer(request.model, source),
            request.n_chunks or CHUNKS,
        )
        workers = stack.enter_context(working(request.threads, usable_device(request.device).type))
        opened = Session(request, source, chunks, watcher, workers)
        opened.say_memory()
        yield opened


def _renderer(model: str, source: TensorSource) -> Callable[[], chat.Render]:
    return lambda: chat.from_metadata(source.metadata, model)
