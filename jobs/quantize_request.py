"""What `quantmill quantize` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantmill.jobs.edits import NO_EDITS, Edits
from quantmill.qkernels.types import TYPES
from quantmill.recipe import FILE_TYPES, PlanEntry, Recipe

DEFAULT_BUFFER_BYTES = 128 << 20


@dataclass(frozen=True)
class Job:
    """`source`: a GGUF file or a Hugging Face directory. `threads`: of the CPU engine, None for all cores.

    `imatrix_name`: what the metadata calls it, its texts then by name too; by default their paths, as llama-quantize.
    `max_buffer_bytes` bounds the rows in memory, in all their forms, over all slabs under way.
    `force`: replace an output that is no GGUF model. `inputs`: further files that were read for this job, which no
    output may be. `way_out`: what to say of a tensor that its type cannot hold, where it is not --tensor-type. `later`:
    whether a directory's layers that predict further tokens are there: "with", "without", or "only" they.
    `strict_device`: a device that is not right or does not work is an error, where else the CPU does its work.
    `edits`: what pruning changes of the source, and so of everything that is made of it. `ray`: the Ray cluster that
    does the work (jobs.cluster), None: this process; device and threads are then those of each of its workers.
    resume: with `ray`, go on from the rows that a killed run has brought to the disk. `source_on`: with `ray`, the
    folder in which each worker has its own copy of the source; None: all see it where it is. `output_on`: the folder in
    which each worker puts a split of the output; None: all write into one that all see.
    """

    source: str
    output: Path
    recipe: Recipe
    imatrix: str | None = None
    imatrix_name: str | None = None
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    max_buffer_bytes: int = DEFAULT_BUFFER_BYTES
    force: bool = False
    inputs: tuple[str, ...] = ()
    way_out: str = ""
    later: str = "with"
    strict_device: bool = False
    edits: Edits = NO_EDITS
    ray: str | None = None
    resume: bool = False
    source_on: Path | None = None
    output_on: Path | None = None


@dataclass(frozen=True)
class Written:
    """Files of an output, and their bytes. hosts: where each of them is, () for all here."""

    paths: tuple[Path, ...]
    n_bytes: int
    hosts: tuple[str, ...] = ()


def inputs_of(job: Job) -> tuple[str, ...]:
    return (job.source, *([job.imatrix] if job.imatrix else []), *job.inputs)


def way_out(job: Job, entry: PlanEntry) -> str:
    """How to give a tensor a type that holds it, with an option that the command has."""
    if job.way_out:
        return job.way_out
    base = FILE_TYPES.get(job.recipe.file_type)
    if base is not None and TYPES[base.base].family == "plain":
        return "choose the file type BF16 or F32"
    return f"give this tensor a type that holds it (--tensor-type {entry.name}=bf16)"
