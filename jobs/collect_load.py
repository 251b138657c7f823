"""The model that an importance matrix is collected from, here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantmill.jobs.watcher import Watcher
from quantmill.models import nextn
from quantmill.models.arithmetic import automatic_dtype, dtype_of, require_dtype
from quantmill.models.devices import usable_device
from quantmill.models.model import LoadedModel, load, weight_bytes
from quantmill.models.pipeline import room_on, stages_for
from quantmill.models.streamed import load_streamed


@dataclass(frozen=True)
class Loading:
    """How the model is loaded; the fields are those of jobs.collect.Job.

    dtype "auto": bfloat16 on a GPU; on a CPU short products where it has them. These move the sums by at most
    some 2e-4 of themselves, and files made with them lose the same (bench/results/whole-products.md).
    """

    model: Path
    name: str
    device: str
    dtype: str
    tokenizer: Path | None
    nextn: bool
    stream: bool


@contextmanager
def loaded_model(job: Loading, watcher: Watcher) -> Iterator[LoadedModel]:
    """The model, closed at the end. Raises ModelError, GGUFError, OSError."""
    device = usable_device(job.device)
    dtype = job.dtype
    if dtype == "auto":
        dtype = automatic_dtype(device) if device.type == "cpu" else "bfloat16"
    require_dtype(dtype, device)
    offloaded = not job.stream and device.type == "cuda" and not _fits(job.model, device, dtype)
    loaded: LoadedModel
    if job.stream:
        loaded = load_streamed(job.model, str(device), dtype, job.tokenizer)
    elif not offloaded:
        loaded = load(job.model, str(device), dtype, job.tokenizer, job.nextn)
    else:
        watcher.note(
            f"{job.name}: does not fit on {device}; its weights stay in main memory and visit it in turn"
        )
        loaded = load(job.model, "cpu", dtype, job.tokenizer, job.nextn)
    try:
        if job.nextn:
            loaded = nextn.attach(loaded)
        if offloaded:
            offload(loaded.model, device)
        yield loaded
    finally:
        loaded.close()


def _fits(path: Path, device: torch.device, dtype: str) -> bool:
    """Whether one GPU holds the weights, or all together."""
    size = weight_bytes(path, dtype_of(dtype))
    return size < room_on(device) or bool(stages_for(size, device))


def offload(model: Any, device: torch.device) -> None:
    """Keep the weights where they are and bring each module's to `device` while it runs (accelerate)."""
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=device, offload_buffers=True)
