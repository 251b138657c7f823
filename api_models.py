"""What `import quantmill` offers that runs a model: torch and transformers are needed, and loaded when it is called.

`device` as in quantmill.api; here it changes results in their last digits too.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from quantmill.api import Place
from quantmill.errors import explained_imports

if TYPE_CHECKING:
    import torch

    from quantmill.jobs.collect import Result as CollectionResult
    from quantmill.jobs.polish import Result as PolishResult
    from quantmill.measure.record import Run


@explained_imports()
def collect_imatrix(
    model: Place,
    texts: Place | Sequence[Place],
    output: Place,
    *,
    ctx: int = 512,
    chunks: int | None = None,
    parse_special: bool = False,
    process_output: bool = False,
    nextn: bool = False,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    force: bool = False,
) -> CollectionResult:
    """Run a model (GGUF, Hugging Face directory, org/name) over texts and write its importance matrix to `output`.

    texts: files, or conversations (.jsonl). ctx: tokens in a chunk; chunks: at most so many. nextn: also the layers
    that predict further tokens. The result holds the matrix, the perplexity of the text and the tensors that saw too
    little of it. Raises QuantmillError, OSError.
    """
    from quantmill.imatrix.text import Cutting, Text
    from quantmill.jobs.collect import Job, run
    from quantmill.jobs.hub import local_model

    files = [texts] if isinstance(texts, str | PathLike) else list(texts)
    job = Job(
        model=local_model(str(model), revision),
        name=str(model),
        texts=tuple(Text(Path(file)) for file in files),
        output=Path(output),
        cutting=Cutting(ctx, chunks),
        parse_special=parse_special,
        process_output=process_output,
        nextn=nextn,
        device=str(device),
        dtype=dtype,
        threads=threads,
        force=force,
    )
    return run(job)


@explained_imports()
def evaluate(
    models: Place | Sequence[Place],
    *,
    base: Place | None = None,
    text: Place | None = None,
    ctx: int | None = None,
    chunks: int | None = None,
    hellaswag: Place | None = None,
    winogrande: Place | None = None,
    multiple_choice: Sequence[Place] = (),
    n_tasks: int | None = None,
    output: Place | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    force: bool = False,
) -> Run:
    """Perplexity of GGUF files on a text, their KL divergence from a base model, and scores on task files.

    The record has a ModelResult for each model, and one for the base. output: where to write it (.json, .csv).
    Raises QuantmillError, OSError.
    """
    from quantmill import __version__
    from quantmill.jobs.evaluate import run
    from quantmill.jobs.evaluate_request import Job, TaskJob
    from quantmill.jobs.hub import local_model

    files = [models] if isinstance(models, str | PathLike) else list(models)
    tasks = [TaskJob("hellaswag", Path(hellaswag))] if hellaswag is not None else []
    tasks += [TaskJob("winogrande", Path(winogrande))] if winogrande is not None else []
    tasks += [TaskJob("multiple-choice", Path(path)) for path in multiple_choice]
    job = Job(
        models=tuple(map(Path, files)),
        base=None if base is None else local_model(str(base)),
        text=None if text is None else Path(text),
        n_ctx=ctx,
        chunks=chunks,
        tasks=tuple(tasks),
        n_tasks=n_tasks,
        device=str(device),
        dtype=dtype,
        threads=threads,
        output=None if output is None else Path(output),
        force=force,
        command="quantmill.evaluate",
        version=__version__,
    )
    return run(job)


@explained_imports()
def polish(
    quant: Place,
    base: Place,
    calibration: Place | Sequence[Place],
    output: Place | None = None,
    *,
    chunks: int | None = None,
    epochs: int = 1,
    lr: float | None = None,
    only: str | None = None,
    keep_codes: bool = False,
    device: str | torch.device = "auto",
    dtype: str | None = None,
    stream: bool = False,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
) -> PolishResult:
    """Train the scales, norms and codes of a quantized GGUF against its original; same size, same format.

    calibration: texts, plain or .jsonl conversations, each FILE or "FILE=WEIGHT". Result.helped tells whether the
    held-back chunks came out better and a file was written, by default QUANT-polished.gguf. only: "scales" or "norms".
    keep_codes: move none, which else those below 5 bits a weight do.
    dtype: of products, None for what suits the file; unlike threads it changes the bytes. stream: for a model larger
    than the GPU's memory: its weights stay in main memory and visit it.
    Raises QuantmillError, OSError.
    """
    from quantmill.imatrix.text import text_argument
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.polish import Job, run

    texts = [calibration] if isinstance(calibration, str | PathLike) else list(calibration)
    job = Job(
        Path(quant),
        local_model(str(base)),
        tuple(text_argument(str(text)) for text in texts),
        None if output is None else Path(output),
        n_chunks=chunks,
        n_epochs=epochs,
        rate=lr,
        only=only,
        keep_codes=keep_codes,
        device=str(device),
        dtype=dtype,
        stream=stream,
        threads=threads,
        resume=resume,
        force=force,
    )
    return run(job)
