"""The files that a squeeze makes: file types as they are, types found for a size, and better codes and scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmill.errors import QuantmillError
from quantmill.gguf_io import open_source
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.outputs import check_output
from quantmill.jobs import allocate, quantize
from quantmill.jobs.errors import ClusterError
from quantmill.jobs.going_on import StoppedError
from quantmill.jobs.published import Published
from quantmill.jobs.recipe import RECIPE, read_recipe, write_recipe
from quantmill.jobs.squeeze_measure import Measuring, file_facts
from quantmill.jobs.squeeze_request import Asked, Candidate, Job, Measured, Wish
from quantmill.jobs.squeeze_texts import Texts
from quantmill.jobs.squeeze_watch import CandidateRow, Inside, InsideLayers, stage_bar
from quantmill.jobs.stages import Stages
from quantmill.measure.perplexity import Estimate
from quantmill.recipe import Recipe

if TYPE_CHECKING:
    from quantmill.jobs import polish_request

Maker = Callable[[str], Mapping[str, Any]]


class Candidates:
    """Makes them, each once, and has them measured. imatrix: of the importance stage; model: its fingerprint."""

    def __init__(
        self,
        job: Job,
        texts: Texts,
        stages: Stages,
        measuring: Measuring,
        published: Published,
        imatrix: Path,
        model: Sequence[Any],
    ) -> None:
        self._job, self._texts, self._stages = job, texts, stages
        self._measuring, self._published = measuring, published
        self._imatrix, self._model = imatrix, model
        self._memory = stages.memory
        self._makers: dict[str, Maker] = {}  # by the key of the file

    def plain_together(self, wishes: Sequence[Wish]) -> None:
        """Make the file types among wishes, reading the model once for all of them."""
        types = [Candidate(wish, wish.label, file_type=wish.file_type) for wish in wishes if wish.file_type]
        by_label = {candidate.label: candidate for candidate in types}

        def work(labels: Sequence[str]) -> list[Mapping[str, Any]]:
            some = [by_label[label] for label in labels]
            places = [
                self._memory.file(self._stages.key("candidate", self._made_from(one)), ".gguf")
                for one in some
            ]
            jobs = [self._quantize_job(one, place) for one, place in zip(some, places, strict=True)]
            results = quantize.run_jobs(jobs, Inside(self._stages.watcher, ", ".join(labels)))
            return [file_facts(label, result) for label, result in zip(labels, results, strict=True)]

        made_from = {label: self._made_from(one) for label, one in by_label.items()}
        self._stages.do_together("candidate", made_from, work)

    def plain(self, candidate: Candidate) -> Measured:
        """A file type, or types found for a size, with importance."""
        made_from = self._made_from(candidate)
        made = self._measured(candidate, "candidate", made_from, partial(self._quantized, candidate))
        assert made is not None  # a plan that cannot be carried out was refused
        return made

    def _made_from(self, candidate: Candidate) -> Mapping[str, Any]:
        made_from = {
            "model": self._model,
            "importance": self._measuring.importance_key,
            "type": candidate.file_type,
            "size": None if candidate.target is None else candidate.target.file_bytes,
        }
        if candidate.target is not None:
            made_from["types"] = self.types_key(candidate)
        return made_from

    def asked(self, candidate: Candidate) -> Asked | None:
        """A plain candidate and its evaluation, for whoever makes it elsewhere; None for one that is there."""
        key = self._stages.key("candidate", made_from := self._made_from(candidate))
        evaluation = self._measuring.made_from(key)
        evaluated = self._stages.key("evaluation", evaluation)
        is_made = self._memory.facts(key) is not None
        if is_made and self._memory.facts(evaluated) is not None:
            return None
        there = self._published.located(key) if is_made else None
        output = there or self._memory.file(key, ".gguf")
        file = None if there else self._quantize_job(candidate, output)
        asked = self._measuring.asked_against_base(evaluated, output)
        return Asked(candidate.label, made_from, evaluation, file, asked)

    def compensated(self, plain: Measured, insisted: bool) -> Measured | None:
        """Codes that undo each other's errors, in the types of a plain candidate; None where there are none."""
        candidate = replace(plain.candidate, label=f"{plain.candidate.label}, compensated")
        make = partial(self._with_codes, candidate, insisted)
        return self._measured(candidate, "compensated", self._learned_from(plain), make)

    def polished(self, before: Measured, insisted: bool) -> Measured | None:
        """Trained scales and norms; None where they do not help."""
        candidate = replace(before.candidate, label=f"{before.candidate.label}, polished")
        make = partial(self._trained, before.key, candidate.label, insisted)
        return self._measured(candidate, "polished", self._learned_from(before), make)

    def _learned_from(self, before: Measured) -> Mapping[str, Any]:
        """What decides the codes or scales that the calibration teaches a candidate."""
        return {
            "candidate": before.key,
            "texts": self._texts.digests,
            "chunks": self._job.learn_chunks,
            "device": self._job.device,
        }

    def types_key(self, candidate: Candidate) -> str:
        """The stage that finds the types for a size."""
        assert candidate.target is not None
        made_from = {
            "model": self._model,
            "importance": self._measuring.importance_key,
            "text": self._texts.digests[0],
            "size": candidate.target.file_bytes,
        }
        label = f"types for {candidate.wish.label}"
        return self._stages.do("types", label, made_from, partial(self._allocated, candidate))

    def types(self, made: Measured) -> Mapping[str, str]:
        """Which tensor became what."""
        found: Mapping[str, str] = (self._memory.facts(made.key) or {}).get("types") or {}
        return found

    def recipe_file(self, candidate: Candidate) -> Path | None:
        """What was found for a size; None for a file type."""
        if candidate.target is None:
            return None
        return self._memory.file(self.types_key(candidate), ".recipe.toml")

    def prediction(self, candidate: Candidate) -> tuple[float, float] | None:
        """Predicted and measured loss of found types, on held-back chunks of the calibration."""
        if candidate.target is None:
            return None
        facts = self._memory.facts(self.types_key(candidate)) or {}
        measured = facts.get("measured")
        return None if measured is None else (facts["predicted"], measured)

    def file(self, key: str) -> Path:
        """The file of a candidate, made again where it lost once and was removed."""
        located = self._published.located(key)
        if located is None:
            self._makers[key](key)
        return located or self._memory.file(key, ".gguf")

    def remove_losers(self) -> None:
        """Files that were not given a name."""
        for key in self._makers:
            self._memory.file(key, ".gguf").unlink(missing_ok=True)

    def _measured(
        self, candidate: Candidate, stage: str, made_from: Mapping[str, Any], make: Maker
    ) -> Measured | None:
        """Make a file and compare it with the base; None where `make` says in its facts that no file came of it."""
        key = self._stages.do(stage, candidate.label, made_from, make)
        self._makers[key] = make
        n_bytes = (self._memory.facts(key) or {}).get("bytes")
        label = f"{candidate.label}: divergence"
        if n_bytes is None:
            self._stages.forget([label])
            return None
        result = self._measuring.against_base(label, key, partial(self.file, key))
        found = Measured(candidate, key, n_bytes, result)
        ppl = result.ppl or Estimate(float("nan"), float("nan"))
        assert result.divergence is not None
        self._stages.watcher.measured(
            CandidateRow(
                candidate.wish.label,
                candidate.label,
                n_bytes,
                found.kld,
                result.divergence.kld.error,
                ppl.value,
            )
        )
        return found

    def _quantize_job(self, candidate: Candidate, output: Path) -> quantize.Job:
        found = self.recipe_file(candidate)
        if found is None:
            recipe = Recipe(candidate.file_type or "Q4_K_M")
        else:
            file = read_recipe(found)
            recipe = Recipe(file.file_type, rules=file.rules)
        return self._with_importance(recipe, output)

    def _with_importance(self, recipe: Recipe, output: Path) -> quantize.Job:
        return quantize.Job(
            str(self._job.model),
            output,
            recipe,
            imatrix=str(self._imatrix),
            imatrix_name=f"{self._job.name}.imatrix.gguf",
            device=self._job.device,
            threads=self._job.threads,
        )

    def _allocated(self, candidate: Candidate, key: str) -> Mapping[str, Any]:
        assert candidate.target is not None
        job = self._with_importance(Recipe("Q8_0"), self._memory.file(key, ".gguf"))
        request = allocate.Request(
            job, candidate.target, self._texts.calibration[0], folder=self._memory.directory
        )
        found = allocate.run(request, partial(stage_bar, self._stages.watcher), self._stages.watcher.note)
        output = check_output(self._memory.file(key, ".recipe.toml"), RECIPE)
        write_recipe(output, request, found, self._job.version)
        return {"predicted": found.predicted, "measured": found.measured, "bytes": found.plan.file_bytes}

    def _quantized(self, candidate: Candidate, key: str) -> Mapping[str, Any]:
        job = self._quantize_job(candidate, self._memory.file(key, ".gguf"))
        result = quantize.run(job, Inside(self._stages.watcher, candidate.label))
        return file_facts(candidate.label, result)

    def _with_codes(self, candidate: Candidate, insisted: bool, key: str) -> Mapping[str, Any]:
        from quantmill.jobs import compensate  # torch
        from quantmill.jobs.compensate_request import Calibration

        calibration = Calibration(
            tuple(map(str, self._texts.calibration)), n_chunks=self._job.learn_chunks, resume=True
        )
        job = replace(self._quantize_job(candidate, self._memory.file(key, ".gguf")), ray=self._job.ray)
        watcher = InsideLayers(self._stages.watcher, candidate.label)
        try:
            result = compensate.run(job, calibration, watcher)
        except QuantmillError as error:
            return self._without(candidate.label, insisted, error)
        return {**file_facts(candidate.label, result), "chunks": result.n_chunks}

    def _trained(self, before: str, label: str, insisted: bool, key: str) -> Mapping[str, Any]:
        from quantmill.jobs import polish  # torch

        facts = self._memory.facts(before) or {}
        try:
            result = polish.run(
                self._polish(facts.get("chunks", 0), self.file(before), self._memory.file(key, ".gguf")),
                Inside(self._stages.watcher, label),
            )
        except QuantmillError as error:
            return self._without(label, insisted, error)
        n_bytes = sum(path.stat().st_size for path in result.paths) if result.helped else None
        kld = [result.before.kld.value, result.after.kld.value]
        return {"label": label, "bytes": n_bytes, "kld": kld, "types": facts.get("types")}

    def _polish(self, n_fitted: int, quant: Path, output: Path) -> polish_request.Job:
        """n_fitted: chunks that codes were fitted to; fresh ones are trained on where there are enough, gently."""
        from quantmill.imatrix.text import Text
        from quantmill.jobs import polish_request
        from quantmill.jobs.thorough import FEWEST, RATE

        wanted = max(FEWEST, self._job.learn_chunks or FEWEST)
        skip = n_fitted if n_fitted and self._n_chunks - n_fitted >= wanted else 0
        return polish_request.Job(
            quant=quant,
            base=self._job.model,
            calibration=tuple(map(Text, self._texts.calibration)),
            output=output,
            n_chunks=self._job.learn_chunks,
            skip_chunks=skip,
            rate=RATE if n_fitted else None,
            device=self._job.device,
            threads=self._job.threads,
            resume=True,
        )

    @cached_property
    def _n_chunks(self) -> int:
        """Of all texts, each cut for itself."""
        from quantmill.imatrix.text import N_CTX, read_text
        from quantmill.models.tokenizer import from_metadata

        source = open_source(self._job.model)
        try:
            tokenizer = from_metadata(source.metadata)
        finally:
            source.close()
        return sum(len(tokenizer.encode(read_text(path))) // N_CTX for path in self._texts.calibration)

    def _without(self, label: str, insisted: bool, error: QuantmillError) -> Mapping[str, Any]:
        """No file came of it: an error where it was insisted on, or is a cluster's, a device's or a disk's, which may
        make it another time; else a remark."""
        if insisted or isinstance(error, ClusterError | StoppedError | GGUFError):
            raise error
        self._stages.watcher.note(f"{label}: left out, {error}")
        return {"label": label, "bytes": None, "why": str(error)}
