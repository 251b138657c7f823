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
from quantmill.jobs.cluster import Node, head_of, nodes
from quantmill.jobs.crew import Crew
from quantmill.jobs.head import told_by_head
from quantmill.jobs.line import Clock
from quantmill.jobs.pieces import PYTHON, Hand, Patience
from quantmill.jobs.quantize_request import Job, Written
from quantmill.jobs.split_carrier import Forget, Make, Name, SplitCarrier, Task, split
from quantmill.jobs.watcher import Watcher
from quantmill.qkernels.engines import Engine
from quantmill.recipe import Plan

_EACH_ALONE = Patience(slow=math.inf)  # a split that is made twice would lie on two hosts
_LAST_WORD = 10.0  # seconds in which a worker must have removed what it has made


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
    first, n_hosts = jobs[0], len(told_by_head(head_of(ray), lambda: nodes(ray)))
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
    with Crew(ray, SplitCarrier, for_host, watcher, lambda node: 1, _EACH_ALONE, memory) as crew:
        hosts: dict[int, str] = {}
        try:
            owners = _made(crew, numbers, clock, watcher)
            for number in reversed(numbers):  # without the first the others are no model yet
                hand, _ = crew.submit(Name(number), owners[number]).result()
                hosts[number] = hand.node.name
        finally:
            _forget(ray, crew.hands, also_named=len(hosts) < len(numbers))
        engines = tuple(engine for found in crew.found for engine in found)
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


def _made(crew: Crew, numbers: Sequence[int], clock: Clock, watcher: Watcher) -> dict[int, Hand]:
    """Who has which split, complete. Those of lost workers are made again."""
    under_way = {crew.submit(Make(number)): number for number in numbers}
    owners: dict[int, Hand] = {}
    while under_way:
        done, _ = wait(under_way, timeout=1.0, return_when=FIRST_COMPLETED)
        for one in done:
            hand, seconds = one.result()
            owners[under_way.pop(one)] = hand
            clock.add(seconds)
        progress = {hand: crew.finish(hand) for hand in list(crew.hands)}
        watcher.progressed(sum(amount or 0 for amount in progress.values()))
        for number, hand in list(owners.items()):
            if hand.is_lost or progress.get(hand, 0) is None:
                del owners[number]
                under_way[crew.submit(Make(number))] = number
    return owners


def _forget(ray: Any, hands: Sequence[Hand], also_named: bool) -> None:
    asked = [hand.actor.carry.remote(Forget(also_named)) for hand in hands]
    for answer in asked:
        try:
            ray.get(answer, timeout=_LAST_WORD)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            continue
