"""How far work spreads over hosts: `python -m bench.scheduling MODEL TYPE --work DIR [--imatrix FILE]`.

Measured here: what a slab's rows and a batch of chunks take, and what Ray adds to a piece (on the head, and on its way
there and back) and to a run (until a worker begins). From these the scheduling of larger jobs is simulated, with the
crew's own rules: a window of pieces in order, each to the host that has the least to do. The file system is left out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, tables
from quantmill import __version__
from quantmill.gguf_io import GGUFSink, open_source
from quantmill.jobs.carrier import AT_ONCE, SlabCarrier, Task, inputs_of
from quantmill.jobs.crew import Crew
from quantmill.jobs.importance import load_importance
from quantmill.jobs.pieces import Outcome
from quantmill.jobs.quantize import Job, plan_job
from quantmill.jobs.watcher import Silent
from quantmill.recipe import Recipe
from quantmill.recipe.slabs import Slab, slabs

CORES = 16  # of each simulated host
HOSTS = (1, 4, 16, 64)
_SLAB_BYTES = 32 << 20
_PIECES = 300


@dataclass(frozen=True)
class Overhead:
    """Seconds. head: of the head's processor, a piece; trip: there and back; start: until a worker begins."""

    head: float
    trip: float
    start: float


@dataclass(frozen=True)
class Large:
    """A job to simulate: seconds of each piece by itself, and how many a host does side by side, and has at hand."""

    name: str
    pieces: Sequence[float]
    side_by_side: int
    at_hand: int


@dataclass(frozen=True)
class Row:
    """efficiency: the time that the pieces take on all processors with nothing between them, over the simulated one."""

    job: str
    hosts: int
    pieces: int
    simulated_s: float
    efficiency: float


_COLUMNS = (
    tables.Column("job", "job"),
    tables.Column("hosts", "hosts", "{:d}"),
    tables.Column("pieces", "pieces", "{:d}"),
    tables.Column("simulated, s", "simulated_s", "{:.1f}"),
    tables.Column("efficiency", "efficiency", "{:.0%}"),
)


def simulated(job: Large, n_hosts: int, overhead: Overhead) -> Row:
    """One run of a job."""
    slots = [[overhead.start] * job.side_by_side for _ in range(n_hosts)]  # when each is free
    ends: list[deque[float]] = [
        deque() for _ in range(n_hosts)
    ]  # of what a host has, as the head will hear of it
    heard: list[float] = []  # until when all pieces up to this one were heard of
    head, window = overhead.start, n_hosts * job.at_hand
    for number, seconds in enumerate(job.pieces):
        if number >= window:
            head = max(head, heard[number - window])
        head += overhead.head
        for waiting in ends:
            while waiting and waiting[0] <= head:
                waiting.popleft()
        host = min(range(n_hosts), key=lambda i: len(ends[i]))
        slot = int(np.argmin(slots[host]))
        end = max(slots[host][slot], head + overhead.trip / 2) + seconds
        slots[host][slot] = end
        answered = end + overhead.trip / 2
        ends[host] = deque(sorted((*ends[host], answered)))
        heard.append(max(answered, heard[-1] if heard else 0.0))
    ideal = sum(job.pieces) / (n_hosts * job.side_by_side)
    return Row(job.name, n_hosts, len(job.pieces), heard[-1], ideal / heard[-1])


class Nothing:
    """A crew's Carrier that does nothing."""

    def __init__(self, task: Any) -> None:
        pass

    def ready(self, version: str) -> Outcome:
        return Outcome("")

    def carry(self, piece: Any) -> Outcome:
        return Outcome("")

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
            return Overhead((time.process_time() - cpu) / _PIECES, statistics.median(trips), start)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _trip(crew: Crew, piece: Slab) -> float:
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
    import torch

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


def large_jobs(slabs_took: Sequence[tuple[int, float]], token_s: float, type: str) -> list[Large]:
    """Larger models with these rates. The larger slabs vary as the measured ones do."""
    most = max(weights for weights, _ in slabs_took)
    rates = [seconds / weights for weights, seconds in slabs_took if weights > most / 4]
    found = []
    for buffer in (128, 4096):
        weights = (buffer << 20) // AT_ONCE // 7  # 2 bytes a weight read, 4 as float32, the rest written
        times = [rate * weights / CORES for rate in islice(cycle(rates), 70_000_000_000 // weights)]
        found.append(Large(f"quantize, 70 G weights, {type}, --max-buffer-size {buffer}", times, 1, AT_ONCE))
    for n_chunks in (512, 8192):
        times = [token_s * 8e9 * 2048] * (n_chunks // 4)
        found.append(Large(f"evaluate, 8 G weights, {n_chunks} chunks", times, CORES, CORES))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("type")
    parser.add_argument("--work", type=Path, required=True)
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
    rows = [simulated(large, n, overhead) for large in large_jobs(took, token_s, options.type) for n in HOSTS]
    rate = sum(weights for weights, _ in took) / sum(seconds for _, seconds in took)
    title = (
        f"Scheduling on hosts of {CORES} cores, simulated. Measured: {rate / 1e6:.0f} M weights/s a core, "
        f"{token_s * 1e12:.0f} ps a token and weight; Ray: {overhead.head * 1e3:.2f} ms of the head a piece, "
        f"{overhead.trip * 1e3:.1f} ms there and back, {overhead.start:.1f} s until a worker begins"
    )
    tables.report(options.out, title, here, _COLUMNS, rows)


if __name__ == "__main__":
    main()
