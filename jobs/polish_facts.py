"""What is said of a polish: the memory it will take, the run it belongs to, the keys in its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from quantmill.calibrate.rates import Rates
from quantmill.calibrate.training import Training
from quantmill.gguf_io import GGUFValueType, Metadata, MetaValue, TensorSource, TensorSpec
from quantmill.jobs.polish_checks import Chunks, bits_per_weight, quantized_base
from quantmill.jobs.polish_memory import embedding, needs_of, too_much
from quantmill.jobs.polish_request import Job, Plan
from quantmill.measure.divergence import Divergence
from quantmill.measure.record import digest
from quantmill.models.devices import usable_device
from quantmill.qkernels import get_type
from quantmill.qkernels.scales import is_trainable, n_values

PER_SCALE = 24  # float32: where it began, the change, its gradients in two strands, and the two moments
PER_CODE = 2  # how far it wants to be from where it is
STATE_CODE = 4  # the same, the code itself, and where it was best
MOST_CODES = 4_000_000_000  # what wishes of more of them take no workstation GPU has beside the model
STATE = 16  # of these, what a run that was stopped goes on from: the change, the best one, the two moments
FINE_BITS = 6.3  # from here on a rounding to bfloat16 is felt beside that of the quantization
_COMPENSATED = "quantmill.calibrate."  # keys of such a file
VERSION = 9  # of the arithmetic: another gives other bytes, and an old run is not gone on with


def plan_of(
    job: Job,
    quant: TensorSource,
    base: TensorSource,
    chunks: Chunks,
    dtype: torch.dtype,
    output: Path,
) -> Plan:
    """Everything that can be said before the work."""
    coarse = quantized_base(base)
    lost = f"the base is quantized itself ({coarse}): what it lost cannot be won back"
    rates = rates_of(job, quant)
    n_scales = sum(_n_scales(rates, spec) for spec in quant.specs() if rates.of(spec.type) > 0)
    n_vectors = sum(spec.n_cols for spec in quant.specs() if len(spec.shape) == 1 and spec.type == "F32")
    n_moving = n_scales + (n_vectors if rates.vectors else 0)
    n_still = sum(  # scales that stay have their memory all the same where the codes move
        _n_scales(rates, spec)
        for spec in quant.specs()
        if rates.of(spec.type) == 0 and rates.moves_blocks(spec.name, spec.type)
    )
    n_codes = _n_codes(rates, quant)
    trained = PER_SCALE * (n_moving + n_still) + PER_CODE * n_codes
    needs = needs_of(job, quant, base, trained, dtype, chunks)
    warnings = (*(() if coarse is None else (lost,)), *too_much(job, needs))
    return Plan(
        output=output,
        n_trained=len(chunks.trained),
        n_ctx=chunks.trained.shape[1],
        n_held_back=len(chunks.held_back),
        n_epochs=job.n_epochs,
        n_moving=n_moving,
        n_codes=n_codes,
        dtype=str(dtype).removeprefix("torch."),
        memory_bytes=needs.host,
        device_bytes=needs.device,
        kept_bytes=4 * chunks.n_tokens * embedding(quant).shape[0]
        + STATE * (n_moving + n_still)
        + STATE_CODE * n_codes,
        warnings=warnings,
    )


def plan_text(plan: Plan) -> str:
    """A plan in one line."""
    codes = f" and the nearest steps of {plan.n_codes} codes" if plan.n_codes else ""
    epochs = "" if plan.n_epochs == 1 else f", {plan.n_epochs} times"
    on_gpu = f" and {plan.device_bytes / 2**30:.2f} GiB of the GPU's" if plan.device_bytes else ""
    return (
        f"{plan.output}: {plan.n_moving} scales and vector elements{codes} are trained on {plan.n_trained} chunks of "
        f"{plan.n_ctx} tokens{epochs}, judged on {plan.n_held_back}; products in {plan.dtype}; "
        f"up to {plan.memory_bytes / 2**30:.2f} GiB of memory{on_gpu}, "
        f"{plan.kept_bytes / 2**30:.2f} GiB of disk beside the file until it is done"
    )


def dtype_of(job: Job, quant: TensorSource) -> torch.dtype:
    """From the model and the options alone, never from the machine: it decides the bytes."""
    name = job.dtype or ("float32" if bits_per_weight(quant) > FINE_BITS else "bfloat16")
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def identity(job: Job, quant: TensorSource, base: TensorSource, chunks: Chunks, dtype: torch.dtype) -> str:
    """A hash of all that decides the result."""
    found = hashlib.sha256()
    described = {
        "version": VERSION,
        "quant": digest(list(quant.paths)),
        "base": digest(list(base.paths)),
        "rates": asdict(rates_of(job, quant)),
        "epochs": job.n_epochs,
        "dtype": str(dtype),
        "device": usable_device(job.device).type,
        "stream": job.stream,
        "torch": torch.__version__,
    }
    found.update(json.dumps(described, sort_keys=True).encode())
    for part in (chunks.trained, chunks.held_back):
        found.update(np.ascontiguousarray(part, "<i4").tobytes())
    return found.hexdigest()


def facts(
    job: Job,
    quant: TensorSource,
    base: TensorSource,
    chunks: Chunks,
    dtype: torch.dtype,
    before: Divergence,
    after: Divergence,
    training: Training,
) -> dict[str, MetaValue]:
    """The keys `quantmill.polish.*` of the written file. rate: the highest of any type, as lowered in the end."""
    text, u32, f32 = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.FLOAT32
    highest = max(job.rates.vectors, *(job.rates.of(spec.type) for spec in quant.specs()))
    values = {
        "base": MetaValue(text, job.base.name),
        "base.sha256": MetaValue(text, digest(list(base.paths))),
        "text.sha256": MetaValue(text, digest(list(job.text_files))),
        "tokens": MetaValue(u32, training.n_done * chunks.trained.shape[1]),
        "chunks": MetaValue(u32, len(chunks.trained)),
        "epochs": MetaValue(u32, job.n_epochs),
        "rate": MetaValue(f32, highest * training.share),
        "only": MetaValue(text, job.only or "all"),
        "code_rate": MetaValue(f32, training.code_rate),
        "dtype": MetaValue(text, str(dtype).removeprefix("torch.")),
        "device": MetaValue(text, usable_device(job.device).type),
        "kld_before": MetaValue(f32, before.kld.value),
        "kld_after": MetaValue(f32, after.kld.value),
    }
    return {f"quantmill.polish.{name}": value for name, value in values.items()}


def with_facts(metadata: Metadata, facts: Mapping[str, MetaValue]) -> Metadata:
    """The quant's keys, those of an earlier polish replaced."""
    for key, value in facts.items():
        metadata = metadata.set(key, value)
    return metadata


def rates_of(job: Job, quant: TensorSource) -> Rates:
    """The job's, but codes stay where there are more than MOST_CODES, and where they were compensated: such a code lies
    far from the original's weight on purpose."""
    compensated = any(key.startswith(_COMPENSATED) for key in quant.metadata)
    stay = compensated or _n_codes(job.rates, quant) > MOST_CODES
    return replace(job.rates, codes=0.0) if stay else job.rates


def _n_codes(rates: Rates, quant: TensorSource) -> int:
    return sum(spec.n_cols * spec.n_rows for spec in quant.specs() if rates.moves_codes(spec.name, spec.type))


def _n_scales(rates: Rates, spec: TensorSpec) -> int:
    if not is_trainable(spec.type):
        return 0
    return (
        spec.n_rows
        * (spec.n_cols // get_type(spec.type).block)
        * n_values(spec.type, rates.sub_scales.get(spec.type, 0.0) > 0)
    )
