"""From a model to a set of files: importance, candidates, their divergence, the best of each, a card and a page.

    result = run(Job(model, "Name", Path("Name"), (calibration,), evaluation, types=("Q4_K_M",)), watcher)

Every stage keeps its result in DIR/.quantmill (jobs.memory). What is there is not done again: after an interrupt, or
with one more type or size, the next run goes on from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from quantmill.gguf_io.filesystem import digest
from quantmill.gguf_io.kinds import IMATRIX, MODEL
from quantmill.gguf_io.outputs import check_directory, check_output
from quantmill.gguf_io.partial import resolved, write_whole
from quantmill.imatrix.text import Cutting, Text
from quantmill.jobs import allocate, collect, evaluate, quantize, report
from quantmill.jobs.memory import Memory, fingerprint
from quantmill.jobs.published import Published
from quantmill.jobs.squeeze_choice import best_of, candidates_of, compared
from quantmill.jobs.squeeze_plan import Plans, model_files, require_other_text
from quantmill.jobs.squeeze_request import (
    MEMORY,
    Candidate,
    Job,
    Made,
    Measured,
    Planned,
    Result,
    Wish,
    wishes_of,
)
from quantmill.jobs.squeeze_watch import Unplanned, stage_bar
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.measure.record import ModelResult, Run, from_json, to_json
from quantmill.measure.report import CARD, PAGE
from quantmill.recipe import Recipe

N_CTX = 512  # tokens a chunk, of both texts
_PAGES = ("index.html", "README.md")


def run(job: Job, watcher: Watcher | None = None) -> Result:
    """Raises JobError, the packages' own errors or OSError with one plain line. An interrupt loses the stage that it
    falls into, and of a long one less than that."""
    return _Squeeze(job, watcher or Silent()).run()


def plan_job(job: Job) -> tuple[Planned, ...]:
    """What `run` would make, candidate by candidate; reads headers only and writes nothing."""
    return _Squeeze(job, Silent()).planned()


class _Squeeze:
    """One run: the job, what is finished, and the stages in their order."""

    def __init__(self, job: Job, watcher: Watcher) -> None:
        self.job, self.watcher = job, watcher
        self.memory = Memory(job.directory / MEMORY)
        self.found = self.done = 0
        self.plans = Plans(job.model)
        self.published = Published(self.memory, job.directory)
        self._makers: dict[str, Callable[[str], Mapping[str, Any]]] = {}  # by the key of the file
        self.texts = [digest([path]) for path in job.calibration]
        require_other_text(job, self.texts)
        self.model = fingerprint(model_files(job.model))

    def run(self) -> Result:
        started = time.perf_counter()
        wishes = wishes_of(self.job)
        self._check_outputs(wishes)
        self.plans.require_possible(wishes)
        plans = {wish: candidates_of(wish, self.plans.bytes_of_preset) for wish in wishes}
        base = self._base()
        self._importance()
        made = [self._meet(wish, candidates) for wish, candidates in plans.items()]
        self._remove_losers()
        write_whole(resolved(self._importance_place()), self.imatrix.read_bytes())
        pages = self._report(made, base)
        return Result(tuple(made), pages, self.found, self.done, time.perf_counter() - started)

    def planned(self) -> tuple[Planned, ...]:
        wishes = wishes_of(self.job)
        self._check_outputs(wishes)
        self.plans.require_possible(wishes)
        return tuple(
            Planned(candidate, self._place(wish.label), self.plans.bytes_of(candidate))
            for wish in wishes
            for candidate in candidates_of(wish, self.plans.bytes_of_preset)
        )

    def _check_outputs(self, wishes: Sequence[Wish]) -> None:
        """All places that will be written, before the work."""
        job = self.job
        check_directory(job.directory)
        if not job.directory.exists():
            return
        inputs = [job.model, job.evaluation, *job.calibration]
        outputs = [check_output(self._place(wish.label), MODEL, inputs, force=job.force) for wish in wishes]
        outputs += [
            check_output(job.directory / name, kind, inputs, force=job.force)
            for name, kind in zip(_PAGES, (PAGE, CARD), strict=True)
        ]
        outputs.append(check_output(self._importance_place(), IMATRIX, inputs, force=job.force))
        ours = {*self.published.names(), *([] if self.published.is_new else _PAGES)}
        for output in outputs:
            if output.replaces and output.path.name not in ours:
                for warning in output.warnings:
                    self.watcher.warn(warning)

    def _place(self, label: str) -> Path:
        return self.job.directory / f"{self.job.name}-{label}.gguf"

    def _importance_place(self) -> Path:
        return self.job.directory / f"{self.job.name}.imatrix.gguf"

    def _stage(
        self, stage: str, made_from: Mapping[str, Any], work: Callable[[str], Mapping[str, Any]]
    ) -> str:
        """Do a stage unless it is done; gives its key."""
        key = self.memory.key(stage, {"version": self.job.version, **made_from})
        if self.memory.facts(key) is not None:
            self.found += 1
            return key
        facts = work(key)
        self.memory.keep(key, facts)
        self.done += 1
        return key

    def _base(self) -> Run:
        """The original on the evaluation text; its predictions are kept in the compact form."""
        job = self.job

        def work(key: str) -> Mapping[str, Any]:
            evaluate.run(
                evaluate.Job(
                    models=(),
                    base=job.model.resolve(),  # however it was spelled, a stopped run is gone on with
                    text=job.evaluation.resolve(),
                    n_ctx=N_CTX,
                    chunks=job.chunks,
                    save_base=self.memory.file(key, ".logits"),
                    device=job.device,
                    threads=job.threads,
                    output=self.memory.file(key, ".record.json"),
                    resume=True,
                    command=job.command,
                    version=job.version,
                ),
                self.watcher,
            )
            return {"text": job.evaluation.name}

        made_from = {
            "model": self.model,
            "text": digest([job.evaluation]),
            "chunks": job.chunks,
            "device": job.device,
        }
        self.base_key = self._stage("base", made_from, work)
        return from_json(self.memory.file(self.base_key, ".record.json"))

    def _importance(self) -> None:
        job = self.job

        def work(key: str) -> Mapping[str, Any]:
            collect.run(
                collect.Job(
                    model=job.model,
                    name=job.name,
                    texts=tuple(Text(path.resolve()) for path in job.calibration),
                    output=self.memory.file(key, ".gguf"),
                    cutting=Cutting(N_CTX, job.imatrix_chunks),
                    device=job.device,
                    threads=job.threads,
                    resume=True,
                ),
                self.watcher,
            )
            return {"texts": [path.name for path in job.calibration]}

        made_from = {
            "model": self.model,
            "texts": self.texts,
            "chunks": job.imatrix_chunks,
            "device": job.device,
        }
        self.imatrix_key = self._stage("importance", made_from, work)

    @cached_property
    def imatrix(self) -> Path:
        return self.memory.file(self.imatrix_key, ".gguf")

    def _meet(self, wish: Wish, candidates: Sequence[Candidate]) -> Made:
        measured = [one for candidate in candidates if (one := self._plain(candidate)) is not None]
        chosen = best_of(measured)
        if self.job.polish:
            polished = self._polished(chosen)
            # Polishing adds keys to the metadata: a file that was close to the ceiling may leave it.
            if polished is not None and (wish.ceiling is None or polished.n_bytes <= wish.ceiling):
                measured.append(polished)
                chosen = min(polished, chosen, key=lambda one: one.kld)
        path = self._place(wish.label)
        if self.published.names().get(path.name) != chosen.key:
            self.published.give(self._file(chosen.key), chosen.key, path)
        others = {one.candidate.label: one.kld for one in measured if one is not chosen}
        return Made(wish, chosen, path, others)

    def _plain(self, candidate: Candidate) -> Measured | None:
        made_from = {
            "model": self.model,
            "importance": self.imatrix_key,
            "type": candidate.file_type,
            "size": None if candidate.target is None else candidate.target.file_bytes,
        }
        return self._measured(candidate, "candidate", made_from, partial(self._quantized, candidate))

    def _polished(self, plain: Measured) -> Measured | None:
        """None where polish does not help."""
        candidate = replace(plain.candidate, label=f"{plain.candidate.label}, polished")
        made_from = {"candidate": plain.key, "texts": self.texts}
        return self._measured(candidate, "polished", made_from, partial(self._trained, plain.key))

    def _measured(
        self,
        candidate: Candidate,
        stage: str,
        made_from: Mapping[str, Any],
        make: Callable[[str], Mapping[str, Any]],
    ) -> Measured | None:
        """Make a file and compare it with the base; None where `make` says in its facts that no file came of it."""
        key = self._stage(stage, made_from, make)
        self._makers[key] = make
        n_bytes = (self.memory.facts(key) or {}).get("bytes")
        if n_bytes is None:
            return None

        def work(record_key: str) -> Mapping[str, Any]:
            evaluate.run(
                evaluate.Job(
                    models=(self._file(key),),
                    base_file=self.memory.file(self.base_key, ".logits"),
                    device=self.job.device,
                    threads=self.job.threads,
                    output=self.memory.file(record_key, ".record.json"),
                    resume=True,
                    command=self.job.command,
                    version=self.job.version,
                ),
                self.watcher,
            )
            return {"of": key}

        record_key = self._stage("evaluation", {"of": key, "base": self.base_key}, work)
        result = from_json(self.memory.file(record_key, ".record.json")).models[0]
        return Measured(candidate, key, n_bytes, result)

    def _quantized(self, candidate: Candidate, key: str) -> Mapping[str, Any]:
        """Make the file of a candidate; of a size, find its types first."""
        job = quantize.Job(
            str(self.job.model),
            self.memory.file(key, ".gguf"),
            Recipe(candidate.file_type or "Q4_K_M"),
            imatrix=str(self.imatrix),
            imatrix_name=self._importance_place().name,
            device=self.job.device,
            threads=self.job.threads,
        )
        if candidate.target is not None:
            request = allocate.Request(job, candidate.target, self.job.calibration[0])
            job = allocate.run(request, partial(stage_bar, self.watcher)).job
        result = quantize.run(job, Unplanned(self.watcher, candidate.label))
        types = {entry.name: entry.type for entry in result.plan.entries}
        return {"label": candidate.label, "bytes": result.file_bytes, "types": types}

    def _trained(self, plain_key: str, key: str) -> Mapping[str, Any]:
        from quantmill.jobs import polish  # torch's share of a squeeze without it is smaller

        job = polish.Job(
            quant=self._file(plain_key),
            base=self.job.model,
            calibration=self.job.calibration,
            output=self.memory.file(key, ".gguf"),
            device=self.job.device,
            threads=self.job.threads,
            resume=True,
        )
        result = polish.run(job, self.watcher)
        n_bytes = sum(path.stat().st_size for path in result.paths) if result.helped else None
        return {"bytes": n_bytes, "kld": [result.before.kld.value, result.after.kld.value]}

    def _file(self, key: str) -> Path:
        """The file of a candidate, made again where it lost once and was removed."""
        located = self.published.located(key)
        if located is None:
            self._makers[key](key)
        return located or self.memory.file(key, ".gguf")

    def _remove_losers(self) -> None:
        """Files of candidates that were not chosen, unless they shall stay."""
        if self.job.keep_all:
            return
        for key in self._makers:
            self.memory.file(key, ".gguf").unlink(missing_ok=True)

    def _report(self, made: Sequence[Made], base: Run) -> tuple[Path, ...]:
        """One record of all files that were made, the page and the card."""
        named = [replace(one.chosen, result=_named(one.chosen.result, one.path)) for one in made]
        ranked = sorted(named, key=lambda one: one.kld)
        record = replace(
            base,
            command=self.job.command,
            models=tuple(one.result for one in named),
            ranking=tuple(one.result.file.name for one in ranked),
            comparisons=compared(named),
        )
        path = self.memory.file("record", ".json")
        write_whole(path, to_json(record).encode())
        return report.run(
            report.Job(
                records=(path,),
                directory=self.job.directory,
                imatrix=self.imatrix,
                base_model=self.job.base_model,
                license_name=self.job.license_name,
                repository=self.job.repository,
                force=self.job.force,
            ),
            self.watcher,
        )


def _named(result: ModelResult, path: Path) -> ModelResult:
    return replace(result, file=replace(result.file, name=path.stem, path=path.name))
