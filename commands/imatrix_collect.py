"""`quantmill imatrix collect`: load the model, cut the texts, run, show, save."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.commands.console import print_line, remark, show, tokens_bar
from quantmill.commands.hub import local_model
from quantmill.commands.imatrix_tables import as_json, coverage_table, write_to
from quantmill.gguf_io.partial import resolved
from quantmill.imatrix import coverage, store
from quantmill.imatrix.collect import Progress, Result, Settings
from quantmill.imatrix.matrix import ImatrixError, ImportanceMatrix
from quantmill.imatrix.reading import read_chunks, read_texts, text_argument
from quantmill.imatrix.run import Saving, run
from quantmill.imatrix.text import Cutting


@dataclass(frozen=True)
class Request:
    """The arguments of `quantmill imatrix collect`."""

    model: str
    files: tuple[str, ...]
    output: Path
    format: store.Format
    n_ctx: int
    n_chunks: int | None
    from_chunk: int
    parse_special: bool
    process_output: bool
    perplexity: bool
    with_means: bool
    route_all: bool
    shrink: int
    seed: int | None
    batch: int | None
    device: str
    dtype: str
    threads: int | None
    tokenizer: Path | None
    every: int
    resume: bool
    json_path: str | None


def collect_and_save(request: Request) -> None:
    """Everything that can fail is tried before the model runs: arguments, texts, tokens, the output's place."""
    cutting = Cutting(request.n_ctx, request.n_chunks, request.from_chunk, request.seed)
    texts = [text_argument(argument) for argument in request.files]
    if request.shrink < 0:
        raise ImatrixError(f"--shrink-experts {request.shrink}: a number of tokens cannot be negative")
    if request.batch is not None and request.batch < 1:
        raise ImatrixError(f"--batch {request.batch}: at least one chunk must be run")
    directory = resolved(request.output).parent
    if not os.access(directory, os.W_OK):
        raise ImatrixError(f"{request.output}: {directory} is not writable; choose another output")
    plain = read_texts(texts)
    loaded = _load(request)
    try:
        chunks = read_chunks(texts, plain, cutting, loaded, request.parse_special, request.tokenizer)
        settings = Settings(
            bos=loaded.tokenizer.bos if loaded.tokenizer.add_bos else None,
            process_output=request.process_output,
            perplexity=request.perplexity,
            with_means=request.with_means,
            route_all=request.route_all,
            batch=request.batch,
        )
        names = tuple(str(text.path) for text in texts)
        saving = Saving(request.output, names, request.model, request.every, request.resume)
        with _Shown(chunks) as shown:
            matrix, result = run(loaded.model, loaded.table, chunks, settings, saving, shown, _warn)
        missed = coverage.uncollected(matrix, _tensors(loaded))
    except KeyboardInterrupt:
        kept = f"what was done is in {saving.partial}: go on with --resume"
        print_line(f"interrupted; {kept if saving.partial.exists() else 'no batch was complete yet'}")
        raise SystemExit(130) from None
    finally:
        loaded.close()
    store.save(request.output, coverage.shrunk(matrix, request.shrink), request.format)
    saving.partial.unlink(missing_ok=True)
    _report(request, coverage.gaps(matrix, missed), matrix, result, shown.last)


class _Shown:
    """Progress on stderr: a bar on a terminal, elsewhere a line after every tenth of the run."""

    def __init__(self, chunks: np.ndarray) -> None:
        self.n_chunks, self.n_ctx = chunks.shape
        self.last: Progress | None = None
        self._bar = tokens_bar("imatrix", chunks.size)
        self._shown = 0  # chunks the bar has been told of
        self._tenth = 0

    def __enter__(self) -> _Shown:
        self._advance = self._bar.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.__exit__(*exception)

    def __call__(self, progress: Progress) -> None:
        self.last = progress
        ppl = f", PPL {progress.perplexity[0]:.4f}" if progress.perplexity else ""
        what = f"{progress.n_tokens / progress.seconds:.0f} tokens/s{ppl}"
        self._advance((progress.n_done - self._shown) * self.n_ctx, what)
        self._shown = progress.n_done
        tenth = 10 * progress.n_done // self.n_chunks
        if tenth > self._tenth and not sys.stderr.isatty():
            remark(f"{progress.n_done} of {self.n_chunks} chunks, {what}")
        self._tenth = tenth


def _load(request: Request) -> Any:
    import torch
    from transformers.utils import logging

    from quantmill.models.model import automatic_device, load

    logging.set_verbosity_error()  # it warns of long texts, which are cut here
    if request.threads is not None:
        if request.threads < 1:
            raise ImatrixError(f"--threads {request.threads}: at least one")
        torch.set_num_threads(request.threads)
    device = automatic_device() if request.device == "auto" else request.device
    dtype = request.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    path = local_model(request.model)
    if not device.startswith("cuda") or _fits(path, torch.device(device), dtype):
        return load(path, device, dtype, request.tokenizer)
    print_line(
        f"{request.model}: does not fit on {device}; its weights stay in main memory and visit it in turn"
    )
    loaded = load(path, "cpu", dtype, request.tokenizer)
    offload(loaded.model, torch.device(device))
    return loaded


def _fits(path: Path, device: Any, dtype: str) -> bool:
    """Whether the weights take less than three quarters of the free memory; the rest is for activations."""
    import torch

    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    # a GGUF is held as its blocks, a checkpoint (mostly of 16 bits) in the type asked for
    growth = 2 if path.is_dir() and dtype == "float32" else 1
    free, _ = torch.cuda.mem_get_info(device)
    return growth * sum(file.stat().st_size for file in files) < 0.75 * free


def offload(model: Any, device: Any) -> None:
    """Keep the weights where they are and bring each module's to `device` while it runs (accelerate)."""
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=device, offload_buffers=True)


def _tensors(loaded: Any) -> list[tuple[str, int]]:
    """What will be quantized: the tensors of the GGUF, or those the checkpoint converts to."""
    if loaded.source is not None:
        return [(spec.name, len(spec.shape)) for spec in loaded.source.specs()]
    return [(name, len(view.shape)) for name, view in loaded.table.views.items()]


def _warn(message: str) -> None:
    print_line(f"warning: {message}")


def _report(
    request: Request,
    found: list[coverage.Gap],
    matrix: ImportanceMatrix,
    result: Result,
    progress: Progress | None,
) -> None:
    speed = progress.n_tokens / progress.seconds if progress else None
    perplexity = result.perplexity()
    if request.json_path is not None:
        record = {
            "output": str(request.output),
            "tensors": len(matrix.entries),
            "chunks": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            "tokens_per_second": speed,
            "perplexity": perplexity and {"value": perplexity[0], "error": perplexity[1]},
            "gaps": [vars(gap) for gap in found],
        }
        write_to(request.json_path, as_json(record))
        if request.json_path == "-":
            return
    if perplexity is not None:
        show(f"Final estimate: PPL = {perplexity[0]:.4f} +/- {perplexity[1]:.5f}")
    rate = f", {speed:.0f} tokens/s" if speed else ""
    show(
        f"{request.output}: {len(matrix.entries)} tensors, {matrix.chunk_count} chunks of {matrix.chunk_size}{rate}"
    )
    if found:
        show(f"\nToo little text for {len(found)} tensors (below {coverage.FEW} tokens a matrix):\n")
        show(coverage_table(found))
        show("\n" + _ways_out(request, found))


def _ways_out(request: Request, found: list[coverage.Gap]) -> str:
    ways = ["a longer text"]
    if any(gap.n_mat > 1 for gap in found):
        ways += [] if request.route_all else ["--route-all-experts"]
        ways += [] if request.shrink else [f"--shrink-experts {coverage.FEW}"]
    return f"What helps: {', '.join(ways)}."
