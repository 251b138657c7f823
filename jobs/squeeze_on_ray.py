"""Candidates of a squeeze made side by side on the hosts of a Ray cluster, each whole by one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantmill.jobs import evaluate, quantize
from quantmill.jobs.carrier import (
    Input,
    from_root,
    inputs_of,
    quantize_from_root,
    require_like_head,
    told,
)
from quantmill.jobs.cluster import Node
from quantmill.jobs.crew import Crew
from quantmill.jobs.errors import JobError
from quantmill.jobs.memory import aside
from quantmill.jobs.pieces import Hand, Outcome
from quantmill.jobs.squeeze_measure import file_facts
from quantmill.jobs.squeeze_request import Asked, Candidate
from quantmill.jobs.stages import Stages
from quantmill.jobs.watcher import Silent


@dataclass(frozen=True)
class Task:
    """threads: of a host's worker. inputs: what every candidate is made from; mark: a file where all are put."""

    inputs: tuple[Input, ...]
    threads: int
    mark: Path


class CandidateCarrier:
    """A crew's Carrier: a piece is a candidate, of which the facts are found. Files appear whole, whoever else makes
    the same ones."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._warnings: list[str] = []

    def ready(self, version: str) -> Outcome:
        return told(lambda: self._begin(version), self._warnings, abroad=True)

    def _begin(self, version: str) -> None:
        mark = self._task.mark
        if not mark.exists():
            raise JobError(
                f"{mark.parent}: is not seen here; write the set (-o) into a file system that all hosts share"
            )
        require_like_head(version, self._task.inputs)

    def carry(self, piece: Asked) -> Outcome:
        return told(lambda: self._made(piece), self._warnings)

    def _made(self, piece: Asked) -> Mapping[str, Any] | None:
        facts = None
        if piece.file is not None:
            own = aside(piece.file.output)
            result = quantize.run(replace(piece.file, output=own, threads=self._task.threads), Silent())
            os.replace(own, piece.file.output)
            facts = file_facts(piece.label, result)
        record = piece.evaluation.output
        assert record is not None
        own = aside(record)
        evaluate.run(replace(piece.evaluation, output=own, threads=self._task.threads), Silent())
        os.replace(own, record)
        return facts

    def finish(self) -> Outcome:
        return told(lambda: None, self._warnings)


def _from_root(piece: Asked) -> Asked:
    file = None if piece.file is None else quantize_from_root(piece.file)
    return replace(piece, file=file, evaluation=from_root(piece.evaluation))


def made_on_ray(
    ray: Any,
    some: Sequence[Candidate],
    asked: Callable[[Candidate], Asked | None],
    inputs: Sequence[Path],
    threads: int | None,
    stages: Stages,
) -> None:
    """Plain candidates and their evaluations, as finished stages. asked: see Candidates."""
    found, mark = inputs_of(inputs), aside(stages.memory.file("seen", "").absolute())

    def for_host(node: Node) -> Task:
        return Task(found, min(threads or node.cpus, node.cpus), mark)

    under_way: list[tuple[Asked, Future[tuple[Hand, Any]]]] = []
    try:
        mark.touch()
        with Crew(ray, CandidateCarrier, for_host, stages.watcher, lambda node: 1) as crew:
            # types for a size are found here while the workers have something to do
            for candidate in sorted(some, key=lambda candidate: candidate.is_found):
                piece = asked(candidate)
                if piece is not None:
                    under_way.append((piece, crew.submit(_from_root(piece))))
            for piece, done in under_way:
                _note(stages, piece, done)
    finally:  # the mark, and what lost workers have left
        stages.memory.remove_aside()


def _note(stages: Stages, piece: Asked, done: Future[tuple[Hand, Any]]) -> None:
    key = stages.do("candidate", piece.label, piece.made_from, lambda key: done.result()[1])

    def evaluated(_: str) -> Mapping[str, Any]:
        done.result()
        return {"of": key}

    stages.do("evaluation", f"{piece.label}: divergence", piece.evaluated_from, evaluated)
