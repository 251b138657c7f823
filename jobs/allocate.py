"""run(request): measure what each tensor loses in each type, and find the types that lose least in a size.

With a calibration text: the KL divergence of the whole model with one tensor changed, for two types a tensor; the
other types along the error of their weights; then once more for the tensors that lose most, in the company of the
types that were chosen. Without one: the error of the weights alone, by kind of tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantmill.errors import counted
from quantmill.gguf_io import TensorSource, open_source
from quantmill.gguf_io.filesystem import digest
from quantmill.imatrix.reading import read_chunks, read_texts
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.imatrix.text import Cutting, Text
from quantmill.jobs.edited import pruned_model
from quantmill.jobs.edits import NO_EDITS, open_model
from quantmill.jobs.errors import JobError
from quantmill.jobs.held_predictions import predictions_note
from quantmill.jobs.importance import importance_index, load_importance
from quantmill.jobs.measurements import measurements_of
from quantmill.jobs.quantize import Job
from quantmill.jobs.runnable import require_runnable
from quantmill.jobs.weighing import Bar, Weighing
from quantmill.qkernels.engines import choose_engines
from quantmill.recipe.budget import Limits, Solution, Target, pose, solve
from quantmill.recipe.plan import Plan
from quantmill.recipe.prune import plan_pruning

if TYPE_CHECKING:
    from quantmill.calibrate.allocation import Sensitivity
    from quantmill.models.model import LoadedModel

N_CTX = 256  # tokens a chunk
N_CHUNKS = 8


@dataclass(frozen=True)
class Request:
    """job: what to quantize and how; its file type is not looked at. text: None for no measuring.

    n_chunks: of N_CTX tokens, from the second half of the text. folder: where measurements are kept, None: with what
    quantmill keeps between runs.
    """

    job: Job
    target: Target
    text: Path | None = None
    n_chunks: int = N_CHUNKS
    limits: Limits = field(default_factory=Limits)
    folder: Path | None = None


@dataclass(frozen=True)
class Allocated:
    """job: with the recipe that was found. losses: tensor in the output → what its type is predicted to lose.

    predicted: what all lose together, measured: what they were measured to lose, None without a text; both KL
    divergence in nats a token with a text, without one numbers to compare only. digests: sha256 of model, imatrix and
    text, as far as there are any. kept: where the measurements are.
    """

    job: Job
    plan: Plan
    losses: Mapping[str, float]
    predicted: float
    measured: float | None
    digests: Mapping[str, str]
    kept: Path
    notes: tuple[str, ...] = ()


def run(request: Request, bar: Bar, note: Callable[[str], None] = lambda line: None) -> Allocated:
    """note: is told what measuring takes of the memory, where that is much.

    Raises RecipeError for a size out of reach before anything is measured; JobError, ImatrixError for the text;
    the packages' own errors. An interrupt loses nothing that was measured.
    """
    job = request.job
    with ExitStack() as opened:
        source = open_model(job.source, job.edits, job.later)
        opened.callback(source.close)
        if request.text is not None:
            require_runnable(job.source, source)
        importance = load_importance(job)
        index = importance_index(job, importance)
        problem = pose(source.specs(), source.metadata, job.recipe, index, request.target, request.limits)
        texts = [] if request.text is None else [Text(request.text)]
        plain = read_texts(texts)
        digests = _digests(request, source)
        cut = ("", "") if not texts else (str(request.n_chunks), str(N_CTX))
        filters = (*job.include_weights, "", *job.exclude_weights)
        if job.recipe.prune_layers:
            filters = (*filters, f"without layers {job.recipe.prune_layers}")
        kept = measurements_of(*digests.values(), *cut, *filters, folder=request.folder)

        @functools.cache
        def sensitivity() -> Sensitivity:
            return opened.enter_context(_sensitivity(request, texts[0], plain, importance, note))

        weighing = Weighing(problem, source, importance, job, kept, bar, sensitivity)
        if not texts:
            losses = weighing.estimated()
            solution, measured = solve(problem, losses), None
        else:
            solution, losses, measured = weighing.in_company(weighing.measured())
    return Allocated(
        replace(job, recipe=solution.plan.recipe),
        solution.plan,
        {name: losses[name][type] for name, type in solution.types.items()},
        solution.loss,
        measured,
        digests,
        kept.path,
        _notes(request, importance, solution),
    )


def _digests(request: Request, source: TensorSource) -> dict[str, str]:
    found = {"model": digest(source.paths), "imatrix": "", "text": ""}
    if request.job.edits is not NO_EDITS:
        found["edits"] = request.job.edits.digest
    if request.job.imatrix is not None:
        found["imatrix"] = digest([Path(request.job.imatrix)])
    if request.text is not None:
        found["text"] = digest([request.text])
    return found


@contextmanager
def _sensitivity(
    request: Request,
    text: Text,
    plain: Mapping[Path, str],
    importance: ImportanceMatrix | None,
    note: Callable[[str], None],
) -> Iterator[Sensitivity]:
    """The model on the device that quantizes, without the layers that are left out, and its predictions."""
    import torch

    from quantmill.calibrate.allocation import Sensitivity, n_scored
    from quantmill.models.model import from_source
    from quantmill.models.workers import working

    job = request.job
    path = Path(job.source)
    device = torch.device(choose_engines(job.device)[0].device)
    source, layers = open_model(job.source, job.edits), job.recipe.prune_layers
    names = None
    if layers:
        pruning = plan_pruning(layers, [spec.name for spec in source.specs()])
        names = {spec.name: pruning.new_name(spec.name) or "" for spec in source.specs()}
        source = pruned_model(open_source(job.source), job.edits, layers)
    scored = n_scored(request.n_chunks, N_CTX)
    if line := predictions_note(source, scored, "types are measured"):
        note(line)
    loaded = from_source(source, path, device, torch.float32)
    try:
        with working(job.threads, device.type) as workers:
            yield Sensitivity(loaded, _held_back(request, text, plain, importance, loaded), workers, names)
    finally:
        loaded.close()


def _held_back(
    request: Request,
    text: Text,
    plain: Mapping[Path, str],
    importance: ImportanceMatrix | None,
    loaded: LoadedModel,
) -> np.ndarray:
    """Chunks [n_chunks, N_CTX] spread over the part of the text that the importance was not collected from, as far as
    that is known and there is one, and over its second half otherwise."""
    chunks = read_chunks([text], plain, Cutting(N_CTX), loaded)
    n = len(chunks)
    if n < 2 * request.n_chunks:
        raise JobError(
            f"{text.path}: has {counted(n, 'chunk')} of {N_CTX} tokens; {request.n_chunks} from its second half need "
            f"{2 * request.n_chunks}: give a longer text or a smaller --measure-chunks"
        )
    first = max(n // 2, _seen(text, importance))
    if n - first < request.n_chunks:
        first = n // 2
    return chunks[np.linspace(first, n - 1, request.n_chunks).astype(int)]


def _seen(text: Text, importance: ImportanceMatrix | None) -> int:
    """How many of our chunks, from the beginning, the importance was collected from, as far as its file says."""
    if importance is None or text.path.name not in [Path(name).name for name in importance.datasets]:
        return 0
    return -(-importance.chunk_count * importance.chunk_size // N_CTX)


def _notes(request: Request, importance: ImportanceMatrix | None, solution: Solution) -> tuple[str, ...]:
    notes = []
    if request.text is None:
        notes.append(
            "no calibration text (--calibration): losses are estimated from the error of the weights and the kind of "
            "tensor, and their sum says nothing but which recipe is better"
        )
    left = -request.target.excess(solution.plan)
    if left > 0.01 * solution.plan.file_bytes:
        notes.append(
            f"{request.target} is more than this model can use: {left} bytes are left (--max-type allows larger types)"
        )
    return tuple(notes)
