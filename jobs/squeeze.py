"""From a model to a set of files: importance, candidates, their divergence, the best of each, a card and a page.

    result = run(Job(model, "Name", Path("Name"), (calibration,), evaluation, types=("Q4_K_M",)), watcher)

Every stage keeps its result in DIR/.quantmill (jobs.memory). What is there is not done again: after an interrupt, or
with one more type or size, the next run goes on from it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from quantmill.gguf_io.kinds import IMATRIX, MODEL
from quantmill.gguf_io.outputs import check_directory, check_output
from quantmill.gguf_io.partial import resolved, write_whole
from quantmill.jobs import squeeze_card, squeeze_measure, squeeze_texts
from quantmill.jobs.cluster import connected
from quantmill.jobs.errors import JobError
from quantmill.jobs.going_on import telling
from quantmill.jobs.memory import Memory, fingerprint
from quantmill.jobs.published import Published
from quantmill.jobs.recipe import RECIPE, recipe_path
from quantmill.jobs.runnable import require_runnable
from quantmill.jobs.source_card import source_card
from quantmill.jobs.squeeze_candidates import Candidates
from quantmill.jobs.squeeze_choice import best_of
from quantmill.jobs.squeeze_costs import COMPENSATE, POLISH, Learning, costs_of, learning_of
from quantmill.jobs.squeeze_measure import BASE, IMPORTANCE, Measuring
from quantmill.jobs.squeeze_plan import Outlook, Plans, disk_bytes, model_files, outlook, require_room
from quantmill.jobs.squeeze_request import MEMORY, Candidate, Job, Made, Measured, Result, Wish, wishes_of
from quantmill.jobs.squeeze_rivals import Rivals
from quantmill.jobs.squeeze_watch import SilentSqueeze, SqueezeWatcher
from quantmill.jobs.stages import Noting, Stages
from quantmill.measure.record import Run
from quantmill.measure.report import CARD, PAGE, Prediction

_PAGES = ("index.html", "README.md")


def run(job: Job, watcher: SqueezeWatcher | None = None) -> Result:
    """Raises JobError, the packages' own errors or OSError with one plain line. An interrupt loses the stage that it
    falls into, and of a long one less than that."""
    squeeze = _Squeeze(job, watcher or SilentSqueeze())
    squeeze.check()
    squeeze.require_room()
    cluster = nullcontext() if job.ray is None else connected(job.ray, job.threads)
    with cluster as ray, squeeze.memory.held():
        advice = f"the same call goes on from what is in {squeeze.memory.directory}"
        with telling(lambda: advice):
            return squeeze.run(ray)


def plan_job(job: Job) -> Outlook:
    """What `run` would make, and about how long that takes; reads headers only and writes nothing."""
    squeeze = _Squeeze(job, SilentSqueeze())
    squeeze.check()
    places = {wish: squeeze.place(wish.label) for wish in squeeze.candidates}
    found = outlook(job, squeeze.plans, squeeze.candidates, places)
    try:
        squeeze.require_room()
    except JobError as error:
        found = replace(found, problems=(str(error),))
    return found


class _Squeeze:
    """One run: the job, what is finished, and the stages in their order."""

    def __init__(self, job: Job, watcher: SqueezeWatcher) -> None:
        self.job = job
        self.memory = Memory(job.directory / MEMORY)
        self.watcher: SqueezeWatcher = Noting(watcher, self.memory)
        self.plans = Plans(job.model)
        self.published = Published(self.memory, job.directory)
        about = {"command": job.command, "name": job.name, "started": time.time()}
        self.stages = Stages(self.memory, job.version, self.watcher, about)
        self.wishes = wishes_of(job)
        self.candidates: Mapping[Wish, tuple[Candidate, ...]] = {}

    def check(self) -> None:
        """All that can be known before the work."""
        job = self.job
        self._check_outputs()
        require_runnable(job.model)
        self.plans.require_possible(self.wishes)
        self.candidates = self.plans.candidates(job, self.wishes)
        squeeze_texts.require_texts(job, self.stages)
        squeeze_measure.require_tasks(job, self.stages)
        self.rivals = Rivals(job, self.stages, [w.label for w in self.wishes if w.file_type is not None])

    def require_room(self) -> None:
        """On the disk, for all that will be there at once. Raises JobError."""
        job = self.job
        ours = [*self.memory.directory.glob("*"), *(job.directory / name for name in self.published.names())]
        there = sum(path.stat().st_size for path in ours if path.is_file())
        require_room(
            job.directory, disk_bytes(job, self.plans, self.candidates, costs_of(job.model, 1.0)), there
        )

    def run(self, ray: Any = None) -> Result:
        """ray: connected, where the job wants it."""
        started = time.perf_counter()
        job, stages = self.job, self.stages
        self._expect()
        model = fingerprint(model_files(job.model))
        texts = squeeze_texts.fetched(job, stages, model)
        squeeze_measure.fetch_tasks(job, stages)
        self.measuring = Measuring(job, texts, stages, model)
        self.rivals.keep()
        base, rate = self.measuring.base()
        imatrix = self.measuring.importance()
        learning = self._learning(rate)
        self.made_of = Candidates(job, texts, stages, self.measuring, self.published, imatrix, model)
        if ray is not None:
            from quantmill.jobs.squeeze_on_ray import made_on_ray  # nobody else needs it

            every = [one for some in self.candidates.values() for one in some]
            read = [imatrix, *model_files(job.model)]
            made_on_ray(ray, every, self.made_of.asked, read, job.threads, stages)
        else:
            learned = {label for label, _ in learning.steps}
            self.made_of.plain_together([wish for wish in self.candidates if wish.label not in learned])
        made = [self._meet(wish, some, learning) for wish, some in self.candidates.items()]
        if not job.keep_all:
            self.made_of.remove_losers()
        write_whole(resolved(self._importance_place()), imatrix.read_bytes())
        recipes = self._recipes(made)
        made, base = self._scored(made, base)
        rivals = self.rivals.measured(self.measuring) if job.measure_rivals else []
        record = squeeze_card.write_record(job, stages, base, made, rivals)
        source = source_card(job.model)
        setting = squeeze_card.setting_of(
            job,
            texts,
            made,
            self.rivals.files,
            self._predictions(made),
            recipes,
            source,
            learning.left_out,
            [one.file.name for one in rivals],
        )
        pages = squeeze_card.write_pages(job, record, self._importance_place(), setting, source)
        stages.finish({"files": [str(one.path.name) for one in made]})
        seconds = time.perf_counter() - started
        return Result(tuple(made), pages, stages.found, stages.done, seconds, learning.left_out)

    def place(self, label: str) -> Path:
        return self.job.directory / f"{self.job.name}-{label}.gguf"

    def _importance_place(self) -> Path:
        return self.job.directory / f"{self.job.name}.imatrix.gguf"

    def _check_outputs(self) -> None:
        """All places that will be written, before the work."""
        job = self.job
        check_directory(job.directory)
        if not job.directory.exists():
            return
        inputs = [job.model, *squeeze_texts.local_files(job)]
        places = [self.place(wish.label) for wish in self.wishes]
        outputs = [check_output(place, MODEL, inputs, force=job.force) for place in places]
        outputs += [check_output(recipe_path(place), RECIPE, inputs, force=job.force) for place in places]
        outputs += [
            check_output(job.directory / name, kind, inputs, force=job.force)
            for name, kind in zip(_PAGES, (PAGE, CARD), strict=True)
        ]
        outputs.append(check_output(self._importance_place(), IMATRIX, inputs, force=job.force))
        ours = {*self.published.names()}
        if not self.published.is_new:
            ours |= {*_PAGES, self._importance_place().name}
        ours |= {recipe_path(job.directory / name).name for name in ours}
        for output in outputs:
            if output.replaces and output.path.name not in ours:
                for warning in output.warnings:
                    self.watcher.warn(warning)

    def _expect(self) -> None:
        """The stages that are sure to come."""
        labels = [*squeeze_texts.expected(self.job), *squeeze_measure.task_labels(self.job), BASE, IMPORTANCE]
        for wish, some in self.candidates.items():
            for one in some:
                labels += [f"types for {wish.label}"] if one.is_found else []
                labels += [one.label, f"{one.label}: divergence"]
        self.stages.expect(labels)

    def _learning(self, rate: float | None) -> Learning:
        """Decided once, and kept: a run that goes on must not decide otherwise because it was measured otherwise."""
        job = self.job
        if not job.learns:
            return Learning(frozenset(), (), 0.0)
        made_from = {
            "wishes": [wish.label for wish in self.wishes],
            "base": self.measuring.base_key,
            "asked": [job.compensate, job.polish, job.hours, job.learn_chunks],
        }

        def work(key: str) -> Mapping[str, Any]:
            found = learning_of(job, self.wishes, costs_of(job.model, rate))
            return {"steps": sorted(found.steps), "left_out": found.left_out, "estimate": found.seconds}

        facts = self.memory.facts(self.stages.do("learning", "what fits the hours", made_from, work)) or {}
        learning = Learning(
            frozenset((label, what) for label, what in facts["steps"]),
            tuple(facts["left_out"]),
            facts["estimate"],
        )
        for line in learning.left_out:
            self.watcher.note(f"left out: {line}")
        return learning

    def _meet(self, wish: Wish, some: Sequence[Candidate], learning: Learning) -> Made:
        measured = [self.made_of.plain(candidate) for candidate in some]
        fits = partial(self._fits, wish)
        if (wish.label, COMPENSATE) in learning.steps:
            best, _ = best_of(measured)
            better = self.made_of.compensated(best, self.job.compensate is True)
            measured += [better] if better is not None and fits(better) else []
        if (wish.label, POLISH) in learning.steps:
            best = min(measured, key=lambda one: one.kld)
            better = self.made_of.polished(best, self.job.polish is True)
            measured += [better] if better is not None and fits(better) else []
        chosen, reason = best_of(measured, self._speeds)
        self.watcher.chosen(wish.label, chosen.candidate.label, reason)
        path = self.place(wish.label)
        if self.published.names().get(path.name) != chosen.key:
            self.published.give(self.made_of.file(chosen.key), chosen.key, path)
        if not self.job.keep_all and self.job.ray is None:  # there those of other wishes are made already
            self.made_of.remove_losers()
        others = {one.candidate.label: one.kld for one in measured if one is not chosen}
        return Made(wish, chosen, path, others, reason)

    def _fits(self, wish: Wish, one: Measured) -> bool:
        """Keys that say how a file was made may bring it over a ceiling."""
        return wish.ceiling is None or one.n_bytes <= wish.ceiling

    def _speeds(self, some: Sequence[Measured]) -> list[float]:
        """Tokens per second of candidates, by their last test; the same types have the same speed. Empty: not known."""
        first: dict[tuple[tuple[str, str], ...], Measured] = {}
        for one in some:
            first.setdefault(tuple(sorted(self.made_of.types(one).items())), one)
        if len(first) == 1:
            return []
        rates = {}
        for types, one in first.items():
            file = partial(self.made_of.file, one.key)
            timed = self.measuring.with_speed(f"{one.candidate.label}: speed", one.key, file, one.result)
            if not timed.speed:
                return []
            rates[types] = timed.speed[-1].mean
        return [rates[tuple(sorted(self.made_of.types(one).items()))] for one in some]

    def _scored(self, made: Sequence[Made], base: Run) -> tuple[list[Made], Run]:
        """What was chosen, and the original, with tasks and speed."""
        out = []
        for one in made:
            key, label = one.chosen.key, one.wish.label
            file = partial(self.made_of.file, key)
            result = self.measuring.with_tasks(f"{label}: tasks", key, file, one.chosen.result)
            result = self.measuring.with_speed(f"{label}: speed", key, file, result)
            out.append(replace(one, chosen=replace(one.chosen, result=result)))
        if base.base is not None:
            scored = self.measuring.with_tasks(
                f"{BASE}: tasks", self.measuring.base_key, lambda: self.job.model.resolve(), base.base
            )
            base = replace(base, base=scored)
        return out, base

    def _recipes(self, made: Sequence[Made]) -> dict[str, str]:
        """The recipe of each file whose types were found, beside it; by the file's name."""
        out = {}
        for one in made:
            place = recipe_path(one.path)
            found = self.made_of.recipe_file(one.chosen.candidate)
            if found is not None:
                write_whole(resolved(place), found.read_bytes())
                out[one.path.stem] = place.name
            elif RECIPE.holds(place):
                place.unlink()  # of a file that is another one now
        return out

    def _predictions(self, made: Sequence[Made]) -> list[Prediction]:
        out = []
        for one in made:
            for candidate in self.candidates[one.wish]:
                found = self.made_of.prediction(candidate)
                if found is not None:
                    out.append(Prediction(one.path.stem, *found))
        return out
