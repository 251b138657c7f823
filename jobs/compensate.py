"""run(job, calibration): quantize a model layer by layer, each matrix undoing what the ones before it have lost.

The plan is `quantmill quantize`'s, so types and sizes are those of the same call without compensation. Every tensor
that the walk comes to gets its codes there; the rest (embeddings, output, what no walk reaches) goes down the line.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantmill.gguf_io import GGUFSink
from quantmill.jobs.cluster import connected, require_listener
from quantmill.jobs.compensate_needs import needs_of
from quantmill.jobs.compensate_plan import (
    chunks_of,
    digest,
    kept_bytes,
    load_model,
    note_unpolished,
    plan_of,
    read,
)
from quantmill.jobs.compensate_request import Calibration, CompensationWatcher, SilentLayers
from quantmill.jobs.compensated import (
    Compensated,
    by_kind,
    device_peak_bytes,
    is_searched,
    peak_bytes,
    plainly,
    unwalked_entries,
)
from quantmill.jobs.edits import open_model
from quantmill.jobs.finished_layers import FinishedLayers, advice_of, finished_path
from quantmill.jobs.going_on import keeping, telling
from quantmill.jobs.importance import load_importance
from quantmill.jobs.line import Clock, Line, line_of
from quantmill.jobs.quantize import Job, require_forgiven
from quantmill.jobs.quantize_plan import check_outputs, require_sound, sink_of
from quantmill.jobs.sound import require_sound_weights
from quantmill.jobs.stored_made import arrays_of, made_of
from quantmill.jobs.thorough import polish_fresh
from quantmill.jobs.worker import carry
from quantmill.models.memory import trim
from quantmill.qkernels import to_float32
from quantmill.qkernels.engines import choose_engines
from quantmill.qkernels.types import DeviceFault
from quantmill.recipe import Plan, PlanEntry
from quantmill.recipe.tensor_scales import scale_name

if TYPE_CHECKING:
    from quantmill.calibrate.layer import Made
    from quantmill.jobs.far_walk import FarWalk
    from quantmill.models.model import LoadedModel
    from quantmill.models.walk import Walk
    from quantmill.models.workers import Workers


@dataclass
class _State:
    """What the parts of one run share."""

    job: Job
    calibration: Calibration
    watcher: CompensationWatcher
    plan: Plan
    sink: GGUFSink
    chunks: np.ndarray
    done: set[str] = field(default_factory=set)
    made: list[Made] = field(default_factory=list)
    n_held: int = 0
    clock: Clock = field(default_factory=Clock)

    def plainly(self, opened: Callable[[], Line], entries: list[PlanEntry]) -> None:
        """Down the line, without compensation."""
        with opened() as line:
            carry(line, [entries], self.job.max_buffer_bytes, self.watcher)
        self.clock.add(line.clock.seconds)
        self.done.update(entry.name for entry in entries)


def run(job: Job, calibration: Calibration, watcher: CompensationWatcher | None = None) -> Compensated:
    """Do the job. The output appears under its name when it is complete; interrupted, finished layers stay beside it.

    A device that is found to give wrong bytes, or fails in the walk, has all of its work thrown away, and it is done
    again on the CPU; DeviceFault with `strict_device`. Raises JobError, ModelError (a model that cannot be walked;
    activations that are not finite, naming layer and chunk), ImatrixError (texts), and what jobs.quantize raises.
    """
    watcher = watcher or SilentLayers()
    with telling(lambda: advice_of(job.output)):
        try:
            return _run(job, calibration, watcher)
        except DeviceFault as fault:
            require_forgiven(fault, job, watcher)
            shutil.rmtree(finished_path(job.output), ignore_errors=True)
            return _run(replace(job, device="cpu"), replace(calibration, resume=False), watcher)


def _run(job: Job, calibration: Calibration, watcher: CompensationWatcher) -> Compensated:
    import torch

    from quantmill.models.workers import working

    started = time.perf_counter()
    texts = read(calibration)
    check_outputs(job)
    if job.ray is not None:
        require_listener(job.ray)  # before the model is read
    engines = choose_engines(job.device)
    with ExitStack() as opened:
        source = open_model(job.source, job.edits, job.later)
        opened.callback(source.close)
        loaded = load_model(job, source, torch.device(engines[0].device))
        importance = load_importance(job)
        chunks, n_fresh = chunks_of(texts, calibration, loaded)
        plan = plan_of(job, calibration, source, importance, loaded, chunks)
        require_sound(plan)
        ray = None if job.ray is None else opened.enter_context(connected(job.ray, job.threads))
        sink = opened.enter_context(sink_of(job, plan, source, watcher, kept_bytes(job, plan, loaded)))
        workers = opened.enter_context(working(job.threads, loaded.device.type))
        state = _State(job, calibration, watcher, plan, sink, chunks)
        watcher.planned(plan)
        needs = needs_of(job, calibration, plan, loaded, chunks)
        watcher.note(needs.text)
        unpolished = note_unpolished(job, calibration, plan, n_fresh, watcher)
        kept = FinishedLayers(job.output, _identity(state, loaded), calibration.resume)
        require_sound_weights(source, plan)
        opened_line = partial(line_of, job, source, [sink], importance, engines, watcher.warn)
        with keeping(lambda: advice_of(job.output), kept.remove):
            # first, for what cannot be done is found here before the walk
            state.plainly(opened_line, unwalked_entries(plan, loaded))
            with state.clock("compensate"):
                _walked(state, loaded, kept, workers, ray, needs.main_bytes > 0)
            state.plainly(opened_line, [entry for entry in plan.entries if entry.name not in state.done])
            sink.commit()
    if unpolished is not None:
        watcher.note(f"not polished: {unpolished}")
    elif calibration.polishes:
        _polish(state, kept, engines[0].device, n_fresh)
    kept.remove()
    return Compensated(
        plan=plan,
        paths=sink.paths,
        source_bytes=sum(path.stat().st_size for path in source.paths),
        file_bytes=sink.file_bytes,
        seconds=time.perf_counter() - started,
        step_seconds=state.clock.seconds,
        engines=engines,
        errors=by_kind(state.made),
        n_chunks=len(chunks),
        n_held=state.n_held,
        plainly=plainly(plan, state.made),
        peak_bytes=peak_bytes(),
        device_peak_bytes=device_peak_bytes(loaded.device),
    )


def _polish(state: _State, kept: FinishedLayers, device: str, n_fresh: int) -> None:
    output = state.sink.paths[0]
    with keeping(lambda: f"{output} is compensated and not polished yet", kept.remove):
        polish_fresh(state.job, state.calibration, output, device, len(state.chunks), n_fresh, state.watcher)


def _walked(
    state: _State,
    loaded: LoadedModel,
    kept: FinishedLayers,
    workers: Workers,
    ray: Any,
    in_main_memory: bool,
) -> None:
    """The walk, here or on the cluster that is connected."""
    from quantmill.models.walk import Walk

    two_streams = state.calibration.effort != "fast"
    if ray is None:
        walk = Walk(loaded, state.chunks, workers.map, two_streams, in_main_memory=in_main_memory)
        _walk(state, walk, kept, workers, two_streams)
        return
    from quantmill.jobs.compensate_on_ray import walking_on_ray  # nobody else needs it

    places = state.sink.places()
    with walking_on_ray(
        ray, state.job, state.plan, loaded, state.chunks, two_streams, places, kept.path, state.watcher
    ) as (far, solving):
        _walk(state, far, kept, solving, two_streams)


def _walk(
    state: _State, walk: Walk | FarWalk, kept: FinishedLayers, workers: Workers, two_streams: bool
) -> None:
    """Write what the walk comes to; what it has finished is kept, until the caller removes it."""
    from quantmill.calibrate.layer import Settings, held_back, quantize_layer
    from quantmill.calibrate.output import quantize_output
    from quantmill.calibrate.solver import EFFORTS

    calibration = state.calibration
    settings = Settings(EFFORTS[calibration.effort], calibration.alpha, calibration.damping)
    by_source = {entry.source: entry for entry in state.plan.entries}
    entries = {source: entry for source, entry in by_source.items() if is_searched(entry)}
    held = held_back(len(walk.batches))
    state.n_held = sum(len(batch) for i, batch in enumerate(walk.batches) if held(i))
    if calibration.resume:
        state.watcher.note(f"{kept.n_found} of {len(walk.modules)} layers were done before")
    types = {name: entry.type for name, entry in entries.items()}
    norms = {entry.source for entry in state.plan.entries if entry.type == "F32"}
    if calibration.keep_norms:
        norms.clear()
    scaled = {source for source in entries if scale_name(source) in by_source}
    for layer in walk.layers():
        if layer.index in state.job.recipe.prune_layers:
            layer.leave_out()
            if layer.index >= kept.n_found:
                kept.write(layer.index, {})  # done as well: layers are counted up to the first gap
            continue
        if layer.index < kept.n_found:
            made = made_of(kept.read(layer.index), types)
            for one in made:
                layer.change_blocks(one.name, one.blocks, one.type, one.in_blocks)
        else:
            made = quantize_layer(layer, types, settings, workers, two_streams, norms, scaled)
            kept.write(layer.index, arrays_of(made))
        _written(state, made, entries)
        _write_norms(state, made, walk)
        for one in made:
            if one.scales is not None:
                _write(state, by_source[scale_name(one.name)], one.scales.astype("<f4"))
        trim()
        state.watcher.layer_done(layer.index + 1, len(walk.modules))
    output = walk.output()
    if output is not None and output.place.takers[0][0] in entries:
        behind = len(walk.modules)
        if behind < kept.n_found:
            made = made_of(kept.read(behind), types)
        else:
            type = entries[output.place.takers[0][0]].type
            made = [quantize_output(output, type, settings, workers, two_streams)]
            kept.write(behind, arrays_of(made))
        _written(state, made, entries)


def _written(state: _State, made: list[Made], entries: dict[str, PlanEntry]) -> None:
    for one in made:
        _write(state, entries[one.name], one.blocks)
    state.made += made


def _write_norms(state: _State, made: list[Made], walk: Walk | FarWalk) -> None:
    """Weights of norms, divided by what the columns behind them hold."""
    source, entries = walk.loaded.source, {entry.source: entry for entry in state.plan.entries}
    assert source is not None
    for name, factors in {one.norm: one.factors for one in made}.items():
        if name is None or factors is None:
            continue
        entry = entries[name]
        values = to_float32(source.read(name), entry.source_type).reshape(-1)
        _write(state, entry, (values / factors).astype("<f4"))


def _write(state: _State, entry: PlanEntry, data: np.ndarray) -> None:
    state.sink.write(entry.name, data)
    state.done.add(entry.name)
    state.watcher.progressed(entry.source_bytes, entry.name)


def _identity(state: _State, loaded: LoadedModel) -> dict[str, str]:
    """Everything that decides the bytes of a layer."""
    import torch

    from quantmill import __version__

    assert loaded.source is not None
    calibration = state.calibration
    sizes = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in loaded.source.paths
    ]
    types = [(entry.source, entry.type) for entry in state.plan.entries]
    return {
        "model": hashlib.sha256(repr(sizes).encode()).hexdigest(),
        "text": digest(state.chunks),
        "edits": state.job.edits.digest,
        "types": hashlib.sha256(repr((types, state.job.recipe.prune_layers)).encode()).hexdigest(),
        "effort": calibration.effort,
        "alpha": str(calibration.alpha),
        "damping": str(calibration.damping),
        "norms": "kept" if calibration.keep_norms else "balanced",
        "device": loaded.device.type,
        "version": f"quantmill {__version__}, torch {torch.__version__}",
    }
