"""What a compensation will write: the plan of the same call with an importance matrix, and the facts of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantmill.errors import counted
from quantmill.gguf_io import TensorSource
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import bytes_in
from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from quantmill.imatrix.reading import read_chunks, read_texts
from quantmill.imatrix.text import Text, text_argument
from quantmill.jobs.compensate_needs import needs_of
from quantmill.jobs.compensate_request import CHUNKS, FEWEST_CHUNKS, Calibration
from quantmill.jobs.compensated import compensated_entries
from quantmill.jobs.edits import open_model
from quantmill.jobs.errors import JobError
from quantmill.jobs.finished_layers import finished_path
from quantmill.jobs.importance import importance_index, load_importance
from quantmill.jobs.quantize_plan import sink_of
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.runnable import require_runnable
from quantmill.jobs.thorough import forbidden
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.qkernels.engines import choose_engines
from quantmill.qkernels.types import TYPES
from quantmill.recipe import ImportanceIndex, Override, Plan, build_plan
from quantmill.recipe.tensor_scales import scale_name, scales_of

if TYPE_CHECKING:
    from quantmill.imatrix.store import ImportanceMatrix
    from quantmill.models.model import LoadedModel

Texts = tuple[Sequence[Text], Mapping[Path, str]]  # and what the plain ones say


def plan_job(job: Job, calibration: Calibration, watcher: Watcher | None = None) -> Plan:
    """What jobs.compensate.run would write, and in `problems` what would stop it; reads the model and the texts.

    The watcher is told what the run would take.
    Raises what `run` raises for a model or a text that does not serve.
    """
    import torch

    texts = read(calibration)
    choose_engines(job.device)
    with ExitStack() as opened:
        source = open_model(job.source, job.edits, job.later)
        opened.callback(source.close)
        loaded = load_model(job, source, torch.device("cpu"))
        chunks, n_fresh = chunks_of(texts, calibration, loaded)
        plan = plan_of(job, calibration, source, load_importance(job), loaded, chunks)
        try:
            sink_of(job, plan, source, Silent(), kept_bytes(job, plan, loaded))
        except GGUFError as error:
            plan = replace(plan, problems=(*plan.problems, str(error)))
        if watcher is not None and not plan.problems:
            watcher.note(needs_of(job, calibration, plan, loaded, chunks).text)
            note_unpolished(job, calibration, plan, n_fresh, watcher)
    return plan


def note_unpolished(
    job: Job, calibration: Calibration, plan: Plan, n_fresh: int, watcher: Watcher
) -> str | None:
    """Why the file will not be polished though that belongs to the effort, or was asked for; said before the work."""
    reason = forbidden(job, plan, n_fresh) if calibration.polishes else None
    if reason is not None:
        watcher.note(f"will not be polished: {reason}")
    return reason


def load_model(job: Job, source: TensorSource, device: object) -> LoadedModel:
    """Without its layers: the walk reads each when it comes to it."""
    import torch

    from quantmill.models.streamed import streamed_source

    assert isinstance(device, torch.device)
    require_runnable(job.source, source)
    return streamed_source(source, Path(job.source), device, torch.float32)


def read(calibration: Calibration) -> Texts:
    """Raises ImatrixError or OSError for texts that cannot be read, JobError for a pipe that would be read again."""
    texts = [text_argument(argument) for argument in calibration.texts]
    for text in texts if calibration.polishes else ():
        if text.path.exists() and not text.path.is_file():
            raise JobError(
                f"{text.path}: is read again to polish, which only a file can be; put the text into one"
            )
    return texts, read_texts(texts)


def chunks_of(found: Texts, calibration: Calibration, loaded: LoadedModel) -> tuple[np.ndarray, int]:
    """The chunks that codes are fitted to, and how many the texts have behind them. Raises JobError for too few."""
    texts, plain = found
    if any(text.path.suffix == ".jsonl" or text.weight is not None for text in texts):
        chunks, n_fresh = read_chunks(texts, plain, calibration.cutting, loaded), 0
    else:
        there = read_chunks(texts, plain, replace(calibration.cutting, n_chunks=None), loaded)
        chunks = there[: calibration.cutting.n_chunks]
        n_fresh = len(there) - len(chunks)
    if len(chunks) < FEWEST_CHUNKS:
        raise JobError(
            f"the calibration text has {counted(len(chunks), 'chunk')} of {chunks.shape[1]} tokens; compensation needs "
            f"at least {FEWEST_CHUNKS}, and {CHUNKS['normal']} to serve well: give a longer text"
        )
    return chunks, n_fresh


def plan_of(
    job: Job,
    calibration: Calibration,
    source: TensorSource,
    importance: ImportanceMatrix | None,
    loaded: LoadedModel,
    chunks: np.ndarray,
) -> Plan:
    """The plan of the same call with an importance matrix; the run's facts are put into the metadata."""
    from quantmill.models.walk import walked_names

    specs = {spec.name: spec for spec in source.specs()}
    _require_no_factors(specs)
    index = importance_index(job, importance)
    if index is None:
        # what the walk collects on its way
        values = {name: specs[name].n_cols * n_mat for name, n_mat in walked_names(loaded).items()}
        index = ImportanceIndex(calibration.texts[0], values, calibration.texts, len(chunks))
    overrides = (*job.recipe.overrides, *_facts(calibration, chunks))
    recipe, tensors = replace(job.recipe, overrides=overrides), source.specs()
    plan = build_plan(tensors, source.metadata, recipe, index)
    written = {entry.source for entry in compensated_entries(plan, loaded)}
    scales = scales_of(tensors, str(source.metadata["general.architecture"].value), plan.entries, written)
    if scales:
        plan = build_plan((*tensors, *scales), source.metadata, recipe, index)
    problems = plan.problems
    if not written:
        stay = any(
            e.type in TYPES and TYPES[e.type].family != "plain" and not e.converted for e in plan.entries
        )
        why = "; those in the model stay as they are" if stay else ""
        problems += (
            f"{job.recipe.file_type}: no matrix gets codes here that compensation could choose{why}; "
            f"leave out --compensate, or name {'another' if stay else 'a quantized'} type",
        )
    return replace(plan, warnings=(*source.warnings, *plan.warnings), problems=problems)


def _require_no_factors(names: Collection[str]) -> None:
    """Raises JobError for weights with a factor beside them, as a model that was published in NVFP4 has."""
    for name in names:
        scale = scale_name(name)
        if name.endswith(".weight") and scale in names:
            raise JobError(
                f"{scale}: compensation does not know the factors of NVFP4 weights; quantize this model plainly"
            )


def kept_bytes(job: Job, plan: Plan, loaded: LoadedModel) -> int:
    """What finished layers will yet take beside the output."""
    whole = sum(entry.n_bytes for entry in compensated_entries(plan, loaded))
    return max(0, whole - bytes_in(finished_path(Path(job.output))))


def _facts(calibration: Calibration, chunks: np.ndarray) -> list[Override]:
    from quantmill import __version__

    text = {
        "version": __version__,
        "method": "compensate",
        "effort": calibration.effort,
        "tokens_sha256": digest(chunks),
        "norms": "kept" if calibration.keep_norms else "balanced",
    }
    facts = [_fact(key, GGUFValueType.STRING, value) for key, value in text.items()]
    facts.append(_fact("chunks", GGUFValueType.UINT32, len(chunks)))
    facts.append(_fact("damping", GGUFValueType.FLOAT32, calibration.damping))
    if calibration.alpha is not None:
        facts.append(_fact("alpha", GGUFValueType.FLOAT32, calibration.alpha))
    return facts


def _fact(key: str, type: GGUFValueType, value: str | float) -> Override:
    return Override(f"quantmill.calibrate.{key}", MetaValue(type, value), str(value))


def digest(chunks: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(chunks, "<i4").tobytes()).hexdigest()
