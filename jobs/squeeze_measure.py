"""What a squeeze measures: the original on the text that decides, importance, candidates against it, tasks, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from quantmill.imatrix.text import N_CTX, Cutting, Text
from quantmill.jobs import collect, evaluate, quantize, speed
from quantmill.jobs.errors import JobError
from quantmill.jobs.squeeze_request import Job
from quantmill.jobs.squeeze_texts import Texts
from quantmill.jobs.squeeze_watch import Clocked, Inside
from quantmill.jobs.stages import Stages
from quantmill.jobs.task_sets import TASK_SETS, TaskSet
from quantmill.measure.errors import MeasureError
from quantmill.measure.record import ModelResult, Run, from_json
from quantmill.measure.speed import SpeedOptions, tool

BASE, IMPORTANCE = "the original", "importance"
_TASK_FILE = "task file"
_REPEATS = 3
_TASK_CTX = 768


def require_tasks(job: Job, stages: Stages) -> None:
    """Whether the hub has the files of the tasks that were not fetched yet; fetches nothing. Raises JobError."""
    for name in job.tasks:
        one = TASK_SETS[name]
        if not stages.is_done(_TASK_FILE, asdict(one)) and one.file not in job.hub.files(one.repo, "dataset"):
            raise JobError(f"--tasks {name}: {one.repo} has no file {one.file} on the hub")


def task_labels(job: Job) -> list[str]:
    """The stages of fetch_tasks."""
    return [f"tasks {name}" for name in job.tasks]


def fetch_tasks(job: Job, stages: Stages) -> None:
    """The files of the tasks, so that what the hub refuses is known before the work. Raises JobError."""
    for name, label in zip(job.tasks, task_labels(job), strict=True):
        one = TASK_SETS[name]

        def work(key: str, one: TaskSet = one) -> Mapping[str, Any]:
            return {"bytes": job.hub.file(one.repo, one.file, "dataset").stat().st_size}

        stages.do(_TASK_FILE, label, asdict(one), work)


class Measuring:
    """model: its fingerprint."""

    def __init__(self, job: Job, texts: Texts, stages: Stages, model: Sequence[Any]) -> None:
        self._job, self._texts, self._stages, self._model = job, texts, stages, model
        self._memory = stages.memory
        self.base_key = self.importance_key = ""

    def base(self) -> tuple[Run, float | None]:
        """The original on the text that decides, its predictions kept in the compact form; tokens a second."""
        job = self._job

        def work(key: str) -> Mapping[str, Any]:
            watcher = Clocked(self._stages.watcher, BASE)
            asked = evaluate.Job(
                models=(),
                base=job.model.resolve(),  # however it was spelled, a stopped run is gone on with
                text=self._texts.evaluation,
                n_ctx=N_CTX,
                chunks=job.chunks,
                save_base=self._memory.file(key, ".logits"),
                threads=job.threads,
            )
            evaluate.run(self._kept(asked, key), watcher)
            return {"text": self._texts.evaluation.name, "tokens_per_second": watcher.rate}

        made_from = {
            "model": self._model,
            "text": self._texts.judge,
            "chunks": job.chunks,
            "device": job.device,
        }
        self.base_key = self._stages.do("base", BASE, made_from, work)
        rate = (self._memory.facts(self.base_key) or {}).get("tokens_per_second")
        return self._record(self.base_key), rate

    def importance(self) -> Path:
        job = self._job

        def work(key: str) -> Mapping[str, Any]:
            collect.run(
                collect.Job(
                    model=job.model,
                    name=job.name,
                    texts=tuple(map(Text, self._texts.calibration)),
                    output=self._memory.file(key, ".gguf"),
                    cutting=Cutting(N_CTX, job.imatrix_chunks),
                    device=job.device,
                    threads=job.threads,
                    resume=True,
                    ray=job.ray,
                ),
                Inside(self._stages.watcher, IMPORTANCE),
            )
            return {"texts": [path.name for path in self._texts.calibration]}

        made_from = {
            "model": self._model,
            "texts": self._texts.digests,
            "chunks": job.imatrix_chunks,
            "device": job.device,
        }
        self.importance_key = self._stages.do("importance", IMPORTANCE, made_from, work)
        return self._memory.file(self.importance_key, ".gguf")

    def against_base(self, label: str, of: Any, file: Any) -> ModelResult:
        """of: what the file is made from; file: gives its path when it has to be run."""

        def work(key: str) -> Mapping[str, Any]:
            asked = replace(self.asked_against_base(key, file()), ray=self._job.ray)
            evaluate.run(asked, Inside(self._stages.watcher, label))
            return {"of": of}

        return self._record(self._stages.do("evaluation", label, self.made_from(of), work)).models[0]

    def made_from(self, of: Any) -> Mapping[str, Any]:
        """What decides a file's divergence."""
        return {"of": of, "base": self.base_key}

    def asked_against_base(self, key: str, file: Path) -> evaluate.Job:
        """The evaluation whose record is kept under `key`."""
        predictions = self._memory.file(self.base_key, ".logits")
        return self._kept(evaluate.Job((file,), base_file=predictions, threads=self._job.threads), key)

    def with_tasks(self, label: str, of: Any, file: Any, result: ModelResult) -> ModelResult:
        """A result with what the model scores in the tasks that are asked for, under their titles."""
        job = self._job
        if not job.tasks:
            return result
        sets = [TASK_SETS[name] for name in job.tasks]

        def work(key: str) -> Mapping[str, Any]:
            files = [job.hub.file(one.repo, one.file, "dataset") for one in sets]
            tasks = tuple(evaluate.TaskJob(one.kind, path) for one, path in zip(sets, files, strict=True))
            asked = evaluate.Job(
                (file(),), tasks=tasks, n_tasks=job.n_tasks, n_ctx=_TASK_CTX, threads=job.threads
            )
            evaluate.run(self._kept(asked, key), Inside(self._stages.watcher, label))
            return {"of": of}

        made_from = {"of": of, "tasks": [asdict(one) for one in sets], "n": job.n_tasks, "ctx": _TASK_CTX}
        found = self._record(self._stages.do("tasks", label, made_from, work)).models[0].tasks
        titled = tuple(replace(task, kind=one.title) for task, one in zip(found, sets, strict=True))
        return replace(result, tasks=titled)

    def with_speed(self, label: str, of: Any, file: Any, result: ModelResult) -> ModelResult:
        """A result with tokens per second; as it is where llama.cpp is not here or cannot run the file."""
        job = self._job
        options = SpeedOptions(job.speed, _REPEATS, job.threads)
        if not job.speed or _tool(options) is None:
            return result

        def work(key: str) -> Mapping[str, Any]:
            try:
                speed.run(
                    speed.Job(
                        models=(file(),),
                        options=options,
                        output=self._memory.file(key, ".record.json"),
                        resume=True,
                        command=job.command,
                        version=job.version,
                    ),
                    Inside(self._stages.watcher, label),
                )
            except MeasureError as error:
                self._stages.watcher.warn(str(error))
                return {"of": of, "failed": str(error)}
            return {"of": of}

        tests = [test.name for test in job.speed]
        made_from = {"of": of, "tests": tests, "threads": job.threads, "tool": _tool(options)}
        key = self._stages.do("speed", label, made_from, work)
        if "failed" in (self._memory.facts(key) or {}):
            return result
        return replace(result, speed=self._record(key).models[0].speed)

    def _kept(self, asked: evaluate.Job, key: str) -> evaluate.Job:
        """An evaluation as a stage: its record among the stages, gone on with where it was stopped."""
        job = self._job
        return replace(
            asked,
            device=job.device,
            threads=job.threads,
            output=self._memory.file(key, ".record.json"),
            resume=True,
            command=job.command,
            version=job.version,
        )

    def _record(self, key: str) -> Run:
        return from_json(self._memory.file(key, ".record.json"))


def _tool(options: SpeedOptions) -> str | None:
    """llama-bench or xllamacpp, None where neither is here."""
    try:
        return tool(options)
    except MeasureError:
        return None


def file_facts(label: str, result: quantize.Result) -> Mapping[str, Any]:
    """What is kept of a file that was made."""
    types = {entry.name: entry.type for entry in result.plan.entries}
    return {"label": label, "bytes": result.file_bytes, "types": types}
