"""How a thorough compensation ends: scales and norms polished on chunks of the texts that no code has seen."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from quantmill.errors import counted
from quantmill.gguf_io import open_source
from quantmill.imatrix.text import text_argument
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.errors import JobError
from quantmill.jobs.polish_checks import bits_per_weight, check_trainable, is_optional
from quantmill.jobs.quantize import Job
from quantmill.jobs.watcher import Watcher
from quantmill.recipe import Plan

RATE = 3e-4  # a third of what serves plain codes: these are near what the original predicts already
FEWEST = 16  # chunks; of fewer too little is held back to judge by


def forbidden(job: Job, plan: Plan, n_fresh: int) -> str | None:
    """Why a compensated file cannot be polished, None when it can; known before it is there. n_fresh: chunks that codes
    were not fitted to."""
    if n_fresh < FEWEST:
        left = counted(n_fresh, "chunk of text is", "chunks of text are")
        return f"{left} left, {FEWEST} are needed (of plain texts without weights)"
    if job.recipe.prune_layers or job.edits.experts:
        return "layers or experts are left out, so that the original is another model"
    with closing(open_source(job.source)) as base:
        planned = {entry.source for entry in plan.entries}
        if not all(spec.name in planned or is_optional(spec.name) for spec in base.specs()):
            return "tensors are left out, so that the original is another model"
        try:
            check_trainable(Path(job.source), base)
        except JobError as error:
            return str(error)
        matrices = [entry for entry in plan.entries if len(entry.shape) > 1]
        bits = (
            8 * sum(e.n_bytes for e in matrices) / max(1, sum(e.n_weights for e in matrices)),
            bits_per_weight(base),
        )
    if bits[1] <= bits[0]:
        return (
            f"{job.source} has {bits[1]:.2f} bits a weight, the output {bits[0]:.2f}: it has nothing to teach"
        )
    return None


def polish_fresh(
    job: Job,
    calibration: Calibration,
    output: Path,
    device: str,
    n_used: int,
    n_fresh: int,
    watcher: Watcher,
) -> None:
    """Polish a compensated file in its place, where that helps on held-back chunks; the watcher hears what came of it.

    n_used: chunks that codes were fitted to; as many fresh ones are trained on, or what there is. Not where it is
    `forbidden`.
    """
    from quantmill.jobs import polish

    request = polish.Job(
        output,
        Path(job.source),
        tuple(text_argument(text) for text in calibration.texts),
        n_chunks=min(n_fresh, max(FEWEST, n_used)),
        skip_chunks=n_used,
        rate=RATE,
        device=device,
        threads=job.threads,
        resume=calibration.resume,
    )
    result = polish.polish_in_place(request, watcher)
    before, after = (f"{scores.kld.value:.5f}" for scores in (result.before, result.after))
    what = "polished" if result.helped else "polishing did not help, scales stay as they were"
    watcher.note(f"{what}: KL divergence {before} -> {after} on held-back chunks")
