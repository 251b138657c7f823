"""The texts of a squeeze, as files on this machine: what is not here yet is fetched, or written by the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantmill.gguf_io.filesystem import digest, open_regular
from quantmill.gguf_io.partial import resolved, write_whole
from quantmill.jobs import data_sets
from quantmill.jobs.errors import JobError
from quantmill.jobs.squeeze_request import Job
from quantmill.jobs.stages import Stages
from quantmill.jobs.texts import HubText, SelfText, TextSource

_STAGE = "text"


@dataclass(frozen=True)
class Texts:
    """calibration, evaluation: files; digests: sha256 of each calibration, `judge` of the evaluation. names: of data
    sets on the hub that they come from."""

    calibration: tuple[Path, ...]
    evaluation: Path
    digests: tuple[str, ...]
    judge: str
    data_sets: tuple[str, ...]


def local_files(job: Job) -> list[Path]:
    """Those texts that are files already."""
    return [text for text in (*job.calibration, job.evaluation) if isinstance(text, Path)]


def require_texts(job: Job, stages: Stages) -> None:
    """Whether the texts are there, and not the same; asks the hub for those that were not fetched, fetches nothing.
    Raises JobError; GGUFError for a file that is none, OSError for one that cannot be read."""
    for text in (*job.calibration, job.evaluation):
        if isinstance(text, Path):  # they are read more than once
            open_regular(text).close()
    for text in job.calibration:
        if isinstance(text, HubText) and text == job.evaluation:
            raise JobError(_same(job.evaluation, text))
    files = [text for text in job.calibration if isinstance(text, Path)]
    if isinstance(job.evaluation, Path):
        judge = digest([job.evaluation])
        for file in files:
            if digest([file]) == judge:
                raise JobError(_same(job.evaluation, file))
    for text in (*job.calibration, job.evaluation):
        if isinstance(text, HubText) and not stages.is_done(_STAGE, _made_from(text)):
            data_sets.found_file(text, job.hub)


def fetched(job: Job, stages: Stages, model: Sequence[Any]) -> Texts:
    """All texts as files, each fetched once. Raises JobError where the text that decides is one learned from."""
    calibration = tuple(_file(job, text, stages, model) for text in job.calibration)
    evaluation = _file(job, job.evaluation, stages, model)
    digests = tuple(digest([path]) for path in calibration)
    judge = digest([evaluation])
    for source, found in zip(job.calibration, digests, strict=True):
        if found == judge:
            raise JobError(_same(job.evaluation, source))
    hub = [text.repo for text in (*job.calibration, job.evaluation) if isinstance(text, HubText)]
    return Texts(calibration, evaluation, digests, judge, tuple(dict.fromkeys(hub)))


def _same(evaluation: TextSource, calibration: TextSource) -> str:
    return (
        f"{evaluation}: is the calibration text {calibration} too; files are judged on a text that they were not "
        "made with: give another --evaluation"
    )


def expected(job: Job) -> list[str]:
    """Labels of the stages that texts take."""
    return [_label(text) for text in (*job.calibration, job.evaluation) if not isinstance(text, Path)]


def _label(text: TextSource) -> str:
    return "the model's own text" if isinstance(text, SelfText) else f"text {text}"


def _file(job: Job, text: TextSource, stages: Stages, model: Sequence[Any]) -> Path:
    if isinstance(text, Path):
        return text.resolve()
    if isinstance(text, SelfText):
        from quantmill.jobs import self_text  # torch

        made_from: Mapping[str, Any] = {
            "model": model,
            "tokens": job.self_tokens,
            "version": self_text.VERSION,
            "device": job.device,
        }

        def write(key: str) -> Mapping[str, Any]:
            folder = _folder(stages, key)
            written = self_text.self_text(job.model, job.device, job.self_tokens, folder, stages.watcher)
            found = _kept(stages, key, "written-by-the-model.txt", written)
            self_text.remove_parts(folder)
            return found
    else:
        made_from = _made_from(text)

        def write(key: str) -> Mapping[str, Any]:
            name = data_sets.found_file(text, job.hub)
            there = job.hub.file(text.repo, name, "dataset")
            display = f"{text.repo.replace('/', '-')}-{PurePosixPath(name).stem}.txt"
            return _kept(stages, key, display, data_sets.text_of(there, name, text))

    key = stages.do(_STAGE, _label(text), made_from, write)
    return stages.memory.file(key, "") / str((stages.memory.facts(key) or {})["file"])


def _made_from(text: HubText) -> dict[str, str | None]:
    return {"repo": text.repo, "file": text.file, "column": text.column}


def _kept(stages: Stages, key: str, name: str, text: str) -> Mapping[str, Any]:
    """The text in a folder of its own, so that it can have a name of its own, which files and cards will say."""
    write_whole(resolved(_folder(stages, key) / name), text.encode("utf-8", "replace"))
    return {"file": name, "characters": len(text)}


def _folder(stages: Stages, key: str) -> Path:
    folder = stages.memory.file(key, "")
    folder.mkdir(exist_ok=True)
    return folder
