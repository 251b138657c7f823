"""How far work spreads over hosts: `python -m bench.scheduling MODEL TYPE --work DIR --text FILE [--imatrix FILE]`.

Measured here: what a slab's rows, a batch of chunks and the steps of a compensation's layers take, and what Ray adds to
a piece (on the head, on its way there and back, for each byte of an answer) and to a run (until a worker begins). From
these the scheduling of larger jobs is simulated (bench.simulated). The file system and the network are left out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from bench import machine, tables
from bench.simulated import COLUMNS, CORES, HOSTS, Large, Overhead, Phase, simulated
from bench.trace import Step, traced
from quantmill import __version__
from quantmill.calibrate.solver import ROWS
from quantmill.gguf_io import GGUFSink, open_source
from quantmill.jobs.carrier import AT_ONCE, SlabCarrier, Task, inputs_of
from quantmill.jobs.crew import Crew
from quantmill.jobs.importance import load_importance
from quantmill.jobs.parcel import Parcel, packed, unpacked
from quantmill.jobs.pieces import Outcome
from quantmill.jobs.quantize import Job, plan_job
from quantmill.jobs.watcher import Silent
from quantmill.models.summing import MOST_GROUPS
from quantmill.recipe import Recipe
from quantmill.recipe.slabs import Slab, slabs

_SLAB_BYTES = 32 << 20
_PIECES = 300
_SENT, _SENDINGS = 32 << 20, 5  # bytes of what is timed on its way, and how often
_LAYERS = 6  # of a compensation that are traced


class Nothing:
    """A crew's Carrier that does nothing."""

    def __init__(self, task: Any) -> None:
        pass

    def ready(self, version: str) -> Outcome:
        return Outcome("")

    def carry(self, piece: Any) -> Outcome:
        if isinstance(piece, Parcel):
            piece.open(torch.device("cpu"))
        return Outcome("", packed(torch.zeros(piece // 4)) if isinstance(piece, int) else None)

    def finish(self) -> Outcome:
        return Outcome("")


def overhead_of(piece: Slab) -> Overhead:
    """On a cluster of one raylet, with pieces that do nothing."""
    import ray
    from ray.cluster_utils import Cluster

    store = 80 << 20
    head_node = {"num_cpus": 1, "object_store_memory": store, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head_node)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        began = time.perf_counter()
        with Crew(ray, Nothing, lambda node: None, Silent(), lambda node: AT_ONCE) as crew:
            start = time.perf_counter() - began
            trips = [_trip(crew, piece) for _ in range(_PIECES // 3)]
            cpu = time.process_time()
            under_way = deque(crew.submit(piece) for _ in range(AT_ONCE))
            for _ in range(_PIECES):
                under_way.popleft().result()
                under_way.append(crew.submit(piece))
            for done in under_way:
                done.result()
            head = (time.process_time() - cpu) / _PIECES
            sent = statistics.median(_trip(crew, _SENT) for _ in range(_SENDINGS))
            cpu = time.process_time()
            for _ in range(_SENDINGS):
                unpacked(crew.submit(_SENT).result()[1], torch.device("cpu"))
            here = (time.process_time() - cpu) / _SENDINGS
            began = time.perf_counter()
            for _ in range(_SENDINGS):
                crew.submit(Parcel(ray, torch.zeros(_SENT // 4))).result()
            parcel = (time.perf_counter() - began) / _SENDINGS
            bytes_s = [seconds / _SENT for seconds in (sent, here, parcel)]
            return Overhead(head, statistics.median(trips), start, *bytes_s)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _trip(crew: Crew, piece: Any) -> float:
    began = time.perf_counter()
    crew.submit(piece).result()
    return time.perf_counter() - began


def slab_times(job: Job) -> list[tuple[int, float]]:
    """Weights and CPU seconds of each slab of a model, read, searched and written by one thread."""
    plan = plan_job(job)
    source = open_source(job.source)
    inputs = inputs_of(source.paths)
    source.close()
    with GGUFSink(job.output, plan.metadata, plan.output_tensors()) as sink:
        task = Task(job, inputs, (sink.places(),), load_importance(job), 1)
        carrier = SlabCarrier(task)
        assert carrier.ready(__version__).error is None
        found = []
        for slab in slabs([plan.entries], _SLAB_BYTES):
            began = time.process_time()
            carrier.carry(slab)
            if slab.entries[0].converted:
                found.append((slab.n_rows * slab.entries[0].n_cols, time.process_time() - began))
        carrier.close()
    return found


def batch_seconds(model: str) -> float:
    """CPU seconds of a token and weight, of a batch of 4 x 512 tokens on one thread."""
    from quantmill.models.model import load

    torch.set_num_threads(1)
    loaded = load(model)
    n_weights = sum(math.prod(spec.shape) for spec in loaded.source.specs()) if loaded.source else 0
    ids = torch.randint(0, loaded.n_vocab, (4, 512))
    times = []
    for _ in range(2):
        began = time.process_time()
        loaded.logits(ids)
        times.append(time.process_time() - began)
    loaded.close()
    return min(times) / ids.numel() / n_weights


def quantizing(slabs_took: Sequence[tuple[int, float]], n_weights: float, buffer: int) -> Phase:
    """Slabs of a larger model with these rates, of a buffer in MiB. The larger slabs vary as the measured ones do."""
    most = max(weights for weights, _ in slabs_took)
    rates = [seconds / weights for weights, seconds in slabs_took if weights > most / 4]
    weights = (buffer << 20) // AT_ONCE // 7  # 2 bytes a weight read, 4 as float32, the rest written
    times = [rate * weights / CORES for rate in islice(cycle(rates), int(n_weights) // weights)]
    return Phase(times, 1, AT_ONCE)


def scoring(token_s: float, n_weights: float, n_chunks: int) -> Phase:
    """A model over chunks of 512 tokens, four together, as many as there are in twelve batches."""
    together = max(1, min(4, -(-n_chunks // 12)))
    times = [token_s * n_weights * together * 512] * (n_chunks // together)
    return Phase(times, CORES, CORES)


def compensating(steps: Sequence[Step], grown: float, n_layers: float, n_chunks: int) -> list[Phase]:
    """The steps of traced layers again, in a model that has `grown` times the weights in each layer, rows and columns
    alike, with so many times the layers, over so many chunks. All of it is taken to grow as the weights do."""
    side, found = math.sqrt(grown), []
    for step in steps:
        alone, seconds, moved = step.alone * grown, step.seconds * grown, int(step.n_bytes * grown)
        if step.most:
            pieces = [seconds * n_chunks / step.most] * step.most
            found.append(Phase(pieces, CORES, CORES, alone, answer=moved, most=MOST_GROUPS))
        else:
            n = math.ceil(step.rows * side / ROWS["cpu"])
            found.append(Phase([seconds / n] * n, CORES, CORES, alone, parcel=moved))
    return found * round(n_layers)


def squeezing(
    slabs_took: Sequence[tuple[int, float]], token_s: float, n_weights: float, n_types: int, n_chunks: int
) -> list[Phase]:
    """The original's predictions, importance, then each type made and measured whole by one host."""
    quantized = sum(seconds for _, seconds in slabs_took) / sum(weights for weights, _ in slabs_took)
    one = (quantized + token_s * n_chunks * 512) * n_weights / CORES
    scored = scoring(token_s, n_weights, n_chunks)
    return [scored, scored, Phase([one] * n_types, 1, 1)]


def large_jobs(
    slabs_took: Sequence[tuple[int, float]], token_s: float, steps: Sequence[Step], weights: int, type: str
) -> list[Large]:
    """Larger models with these rates. weights: in the traced layers."""
    grown = 8e9 / 32 / (weights / _LAYERS)
    return [
        *(
            Large(
                f"quantize, 70 G weights, {type}, --max-buffer-size {buffer}",
                [quantizing(slabs_took, 70e9, buffer)],
            )
            for buffer in (128, 4096)
        ),
        *(
            Large(f"evaluate, 8 G weights, {n_chunks} chunks", [scoring(token_s, 8e9, n_chunks)])
            for n_chunks in (512, 8192)
        ),
        Large(
            f"compensation, 8 G weights, {type}, 128 chunks",
            compensating(steps, grown, 32 / _LAYERS, 128),
            one_crew=True,
        ),
        *(
            Large(
                f"squeeze, 8 G weights, {n_types} types, 128 chunks",
                squeezing(slabs_took, token_s, 8e9, n_types, 128),
            )
            for n_types in (20, 128)
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("type")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--imatrix")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = machine.describe("bench.scheduling", sys.argv[1:])
    options.work.mkdir(parents=True, exist_ok=True)
    job = Job(
        options.model,
        options.work / "out.gguf",
        Recipe(options.type),
        options.imatrix,
        device="cpu",
        threads=1,
    )
    took = slab_times(job)
    token_s = batch_seconds(options.model)
    overhead = overhead_of(next(slabs([plan_job(job).entries], _SLAB_BYTES)))
    steps, weights = traced(job, options.text, _LAYERS)
    jobs = large_jobs(took, token_s, steps, weights, options.type)
    rows = [simulated(large, n, overhead) for large in jobs for n in HOSTS]
    rate = sum(weights for weights, _ in took) / sum(seconds for _, seconds in took)
    title = (
        f"Scheduling on hosts of {CORES} cores, simulated. Measured: {rate / 1e6:.0f} M weights/s a core, "
        f"{token_s * 1e12:.0f} ps a token and weight; Ray: {overhead.head * 1e3:.2f} ms of the head a piece, "
        f"{overhead.trip * 1e3:.1f} ms there and back, {overhead.byte * 1e9:.1f} s a GB of an answer, "
        f"{overhead.head_byte * 1e9:.1f} of them the head's, {overhead.parcel_byte * 1e9:.1f} of a parcel, "
        f"{overhead.start:.1f} s until a worker begins"
    )
    tables.report(options.out, title, here, COLUMNS, rows)


if __name__ == "__main__":
    main()
