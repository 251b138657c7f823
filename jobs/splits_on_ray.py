"""An output in as many splits as a Ray cluster has workers, each on a worker's own disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from typing import Any

from quantmill.gguf_io import TensorSource, lay_out
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.carrier import as_workers_see
from quantmill.jobs.cluster import Node
from quantmill.jobs.crew import Crew
from quantmill.jobs.hosts import living
from quantmill.jobs.line import Clock
from quantmill.jobs.pieces import PYTHON, Hand, Patience
from quantmill.jobs.quantize_request import Job, Written
from quantmill.jobs.split_carrier import Make, Name, SplitCarrier, Task, split
from quantmill.jobs.splits_kept import Kept
from quantmill.jobs.watcher import Watcher
from quantmill.qkernels.engines import Engine
from quantmill.recipe import Plan

_EACH_ALONE = Patience(slow=math.inf)  # a split that is made twice would lie on two hosts


def split_on_ray(
    ray: Any,
    jobs: Sequence[Job],
    source: TensorSource,
    importance: ImportanceMatrix | None,
    plans: Sequence[Plan],
    watcher: Watcher,
) -> tuple[Clock, tuple[Engine, ...], list[Written]]:
    """Seconds of the steps, of all workers together; their engines; the files of each plan.

    ray: connected. Where each file lies is noted. Raises JobError for a cluster that cannot be used, and what the work
    raises; then no host has kept anything, as far as it could be reached.
    """
    first, n_hosts = jobs[0], len(living(ray))
    assert first.output_on is not None
    plans = split(plans, max(1, n_hosts))
    outputs = tuple(first.output_on / job.output.name for job in jobs)
    layouts = [
        lay_out(output, plan.metadata, plan.output_tensors(), keep_split=True)
        for output, plan in zip(outputs, plans, strict=True)
    ]
    job, inputs = as_workers_see(first, source)
    task = Task(job, inputs, importance, outputs, plans)

    def for_host(node: Node) -> Task:
        return replace(task, job=replace(job, threads=min(job.threads or node.cpus, node.cpus)))

    clock, numbers, memory = Clock(), range(len(layouts[0])), PYTHON + job.max_buffer_bytes
    kept = Kept(ray, [[files[number].path for files in layouts] for number in numbers], watcher)
    hosts: dict[int, str] = {}
    try:
        with Crew(ray, SplitCarrier, for_host, watcher, lambda node: 1, _EACH_ALONE, memory) as crew:
            crew.when_given = kept.given
            try:
                _make_and_name(crew, kept, hosts, numbers, clock, watcher)
            finally:
                kept.forget(crew.hands, also_named=len(hosts) < len(numbers))
            engines = tuple(engine for found in crew.found for engine in found)
    finally:
        kept.sweep(also_named=len(hosts) < len(numbers))
    for number in numbers:
        watcher.note(f"{hosts[number]}: " + ", ".join(str(files[number].path) for files in layouts))
    return (
        clock,
        engines,
        [
            Written(
                tuple(file.path for file in files),
                sum(file.file_bytes for file in files),
                tuple(hosts[number] for number in numbers),
            )
            for files in layouts
        ],
    )


def _make_and_name(
    crew: Crew, kept: Kept, hosts: dict[int, str], numbers: Sequence[int], clock: Clock, watcher: Watcher
) -> None:
    """hosts: where each split has its name, as far as it came. One that is lost before is made again."""
    owners: dict[int, Hand] = {}
    while missing := [number for number in reversed(numbers) if number not in hosts]:
        _make(crew, kept, owners, sorted(missing), clock, watcher)
        for number in missing:  # the first comes last: without it the others are no model yet
            hand, is_named = crew.submit(Name(number), owners[number]).result()
            if not is_named:
                del owners[number]
                break
            kept.named(hand, number)
            hosts[number] = hand.node.name


def _make(
    crew: Crew, kept: Kept, owners: dict[int, Hand], numbers: Sequence[int], clock: Clock, watcher: Watcher
) -> None:
    """Until all have an owner, who has them complete. Those of lost workers are made again."""
    under_way = {crew.submit(Make(number)): number for number in numbers if number not in owners}
    while under_way:
        done, _ = wait(under_way, timeout=1.0, return_when=FIRST_COMPLETED)
        for one in done:
            hand, made = one.result()
            number = under_way.pop(one)
            owners[number] = hand
            kept.made(hand, number, made)
            clock.add(made.seconds)
        progress = {hand: crew.finish(hand) for hand in list(crew.hands)}
        watcher.progressed(sum(amount or 0 for amount in progress.values()))
        for number in [number for number in numbers if number in owners]:
            hand = owners[number]
            if hand.is_lost or progress.get(hand, 0) is None:
                del owners[number]
                under_way[crew.submit(Make(number))] = number
