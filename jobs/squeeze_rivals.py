"""Others' files of the types that a squeeze makes: asked for once, and measured where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from quantmill.jobs.rivals import RivalFile, rival_files
from quantmill.jobs.squeeze_measure import Measuring
from quantmill.jobs.squeeze_request import Job
from quantmill.jobs.stages import Stages
from quantmill.measure.record import ModelResult

_STAGE = "rivals"


class Rivals:
    """files: of all rivals. Asks the hub for what was not kept. Raises JobError for one that is not there."""

    def __init__(self, job: Job, stages: Stages, types: Sequence[str]) -> None:
        self._job, self._stages, self._types = job, stages, list(types)
        self.files: list[RivalFile] = []
        for repository in job.rivals:
            facts = stages.memory.facts(stages.key(_STAGE, self._made_from(repository)))
            if facts is None:
                self.files += rival_files(repository, types, job.hub).values()
            else:
                self.files += [
                    RivalFile(repository, type, tuple(names), n) for type, names, n in facts["files"]
                ]

    def _made_from(self, repository: str) -> dict[str, Any]:
        return {"repository": repository, "types": self._types}

    def keep(self) -> None:
        """As stages, so that another run asks nobody."""
        for repository in self._job.rivals:
            label = f"files of {repository}"
            self._stages.do(_STAGE, label, self._made_from(repository), partial(self._facts, repository))

    def _facts(self, repository: str, key: str) -> Mapping[str, Any]:
        own = [one for one in self.files if one.repository == repository]
        return {"files": [[one.type, one.files, one.n_bytes] for one in own]}

    def measured(self, measuring: Measuring) -> list[ModelResult]:
        """On the text that decides, by the names of their owners."""
        out = []
        for one in self.files:
            of = {"repository": one.repository, "files": one.files, "bytes": one.n_bytes}
            name = f"{self._job.name}-{one.type}-{one.repository.partition('/')[0]}"
            result = measuring.against_base(name, of, partial(self._fetched, one))
            out.append(replace(result, file=replace(result.file, name=name, path=one.files[0])))
        return out

    def _fetched(self, one: RivalFile) -> Path:
        parts = [self._job.hub.file(one.repository, name, "model") for name in one.files]
        return parts[0]
