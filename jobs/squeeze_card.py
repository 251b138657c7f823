"""The end of a squeeze: one record of all files that were made, the model card and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantmill.gguf_io.partial import write_whole
from quantmill.jobs import report
from quantmill.jobs.rivals import RivalFile
from quantmill.jobs.source_card import SourceCard
from quantmill.jobs.squeeze_choice import compared
from quantmill.jobs.squeeze_request import Job, Made
from quantmill.jobs.squeeze_texts import Texts
from quantmill.jobs.stages import Stages
from quantmill.jobs.watcher import Silent
from quantmill.measure.record import ModelResult, Run, from_json, to_json
from quantmill.measure.report import Prediction, Rival, Setting

RECORD = "record"  # in the memory: all files that were made


def write_record(
    job: Job, stages: Stages, base: Run, made: Sequence[Made], rivals: Sequence[ModelResult]
) -> Path:
    """made: in the order of the wishes. rivals: results of others' files."""
    named = [replace(one.chosen, result=_named(one.chosen.result, one.path)) for one in made]
    ranked = sorted(named, key=lambda one: one.kld)
    record = replace(
        base,
        command=job.command,
        models=(*(one.result for one in named), *rivals),
        ranking=tuple(one.result.file.name for one in ranked),
        comparisons=compared([*(one.result for one in named), *rivals]),
    )
    path = stages.memory.file(RECORD, ".json")
    write_whole(path.resolve(), to_json(record).encode())
    return path


def read_record(path: Path) -> Run:
    return from_json(path)


def write_pages(
    job: Job,
    record: Path,
    imatrix: Path,
    setting: Setting,
    source: SourceCard,
) -> tuple[Path, ...]:
    return report.run(
        report.Job(
            records=(record,),
            directory=job.directory,
            imatrix=imatrix,
            base_model=job.base_model or source.repository or source.base_model,
            license_name=job.license_name or source.license,
            repository=job.repository,
            force=job.force,
            setting=setting,
        ),
        Silent(),  # what it replaces was said before the work
    )


def setting_of(
    job: Job,
    texts: Texts,
    made: Sequence[Made],
    rivals: Sequence[RivalFile],
    predictions: Sequence[Prediction],
    recipes: dict[str, str],
    source: SourceCard,
    left_out: Sequence[str],
    others: Sequence[str],
) -> Setting:
    """others: names of files that are not ours."""
    own = {one.wish.label: one.path.stem for one in made}
    repositories = {
        rival: {own[one.type]: one.n_bytes for one in rivals if one.repository == rival}
        for rival in job.rivals
    }
    given = job.license_name is None
    return Setting(
        rivals=tuple(Rival(repository, sizes) for repository, sizes in repositories.items()),
        predictions=tuple(predictions),
        reasons={one.path.stem: _reason(one) for one in made},
        recipes=recipes,
        importance=(f"{job.name}.imatrix.gguf", tuple(path.name for path in texts.calibration)),
        datasets=texts.data_sets,
        language=source.language,
        license_file_name=source.license_name if given else None,
        license_link=source.license_link if given else None,
        pipeline_tag=source.pipeline_tag or "text-generation",
        fit=job.fit_note,
        left_out=tuple(left_out),
        others=frozenset(others),
    )


def _reason(one: Made) -> str:
    others = ", ".join(f"{label} {kld:.6f}" for label, kld in one.instead_of.items())
    return f"{one.chosen.candidate.label}, {one.reason}" + (
        f"; KLD of the others: {others}" if others else ""
    )


def _named(result: ModelResult, path: Path) -> ModelResult:
    return replace(result, file=replace(result.file, name=path.stem, path=path.name))
