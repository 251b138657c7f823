"""The memory that a polish will take, of the host and of a GPU, said before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from quantmill.calibrate.head import PART, SLAB
from quantmill.calibrate.replay import KEPT_BYTES
from quantmill.calibrate.strands import AT_ONCE
from quantmill.calibrate.teacher import BATCH
from quantmill.gguf_io import TensorSource, TensorSpec
from quantmill.jobs.errors import JobError
from quantmill.jobs.polish_checks import Chunks
from quantmill.jobs.polish_request import Job
from quantmill.models.devices import usable_device
from quantmill.models.workers import threads_for

LIBRARIES = 450 << 20  # torch, transformers and Python themselves
_LIBRARIES_OF_GPU = 3 << 30  # with those that torch loads for one


@dataclass(frozen=True)
class Needs:
    """Bytes at most, of main memory and of a GPU's; device is 0 where the CPU computes."""

    host: int
    device: int


def needs_of(
    job: Job, quant: TensorSource, base: TensorSource, trained: int, dtype: torch.dtype, chunks: Chunks
) -> Needs:
    """An upper estimate. Mapped files count, though the system can drop them. trained: bytes that stand for what is
    trained.

    The original listens, then its weights go and the student is trained; the larger of the two.
    """
    kind = usable_device(job.device).type
    threads = threads_for(kind, job.threads)
    n_hidden, n_vocab = embedding(quant).shape[:2]
    size = dtype.itemsize
    n_ctx, n_judged = chunks.trained.shape[1], chunks.held_back.shape[1]
    head = n_hidden * n_vocab * size
    layers = _layer_weights(quant)
    layer = max(layers.values(), default=0) * size
    logits = threads * (2 * size * min(SLAB, n_ctx * n_vocab) + 6 * 4 * PART)
    inside = 30 * 4 * n_hidden  # of a token: what one layer keeps between its forward and its backward
    strand = n_ctx * (size * n_vocab + 4 * n_hidden * len(layers) + inside)
    listening = head + layer + threads * BATCH * n_judged * inside
    training = 2 * head + layer + logits + min(AT_ONCE, threads) * strand + KEPT_BYTES
    original, student = _n_bytes(base), _n_bytes(quant)
    if kind == "cpu":
        return Needs(LIBRARIES + max(original + listening, 2 * student + training + trained), 0)
    largest = max((spec.n_bytes for spec in (*quant.specs(), *base.specs())), default=0)
    if job.stream:
        host = max(original, 2 * student + trained)
        return Needs(_LIBRARIES_OF_GPU + host, max(listening, training) + largest)
    held = max(original + listening, student + training + trained) + largest
    return Needs(_LIBRARIES_OF_GPU + largest, held)


def check_stream(job: Job) -> None:
    """Raises JobError where nothing would visit a GPU."""
    device = usable_device(job.device)
    if job.stream and device.type == "cpu":
        raise JobError(
            f"--stream is for a GPU whose memory is too small; {device} computes in main memory anyway: leave it out"
        )


def too_much(job: Job, needs: Needs) -> Iterator[str]:
    """What is said where a GPU has less."""
    device = usable_device(job.device)
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needs.device > free:
        advice = (
            "--device cpu takes main memory" if job.stream else "--stream leaves the weights in main memory"
        )
        yield (
            f"{device} has {free / 2**30:.1f} GiB free and this may take {needs.device / 2**30:.1f}: {advice}"
        )


def embedding(source: TensorSource) -> TensorSpec:
    return next(spec for spec in source.specs() if spec.name == "token_embd.weight")


def _layer_weights(source: TensorSource) -> dict[str, int]:
    """Weights of the matrices of each layer, by `blk.N`."""
    out: dict[str, int] = {}
    for spec in source.specs():
        if spec.name.startswith("blk.") and len(spec.shape) > 1:
            layer = ".".join(spec.name.split(".")[:2])
            out[layer] = out.get(layer, 0) + spec.n_cols * spec.n_rows
    return out


def _n_bytes(source: TensorSource) -> int:
    return sum(spec.n_bytes for spec in source.specs())
