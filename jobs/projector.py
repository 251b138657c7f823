"""run(conversion): the part of a Hugging Face model that sees as a GGUF of its own, llama.cpp's --mmproj file."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from quantmill.gguf_io import GGUFSink
from quantmill.gguf_io.convert.projector import Projector
from quantmill.jobs.convert import Conversion
from quantmill.jobs.errors import JobError
from quantmill.qkernels import quantize


@dataclass(frozen=True)
class Result:
    """type: what "auto" became. seconds: None where nothing was written."""

    type: str
    n_tensors: int
    file_bytes: int
    warnings: tuple[str, ...]
    seconds: float | None


def run(conversion: Conversion, write: bool = True) -> Result:
    """Convert, tensor after tensor; `write` False only checks. Raises JobError when the model is no directory, and
    GGUFError for what cannot be converted or written."""
    if not conversion.model.is_dir():
        raise JobError(f"{conversion.model}: is no directory; convert takes a Hugging Face model")
    start = perf_counter()
    projector = Projector(conversion.model, conversion.type)
    sink = GGUFSink(
        conversion.output,
        projector.metadata,
        projector.tensors,
        inputs=projector.paths,
        force=conversion.force,
    )
    if write:
        with sink:
            for tensor in projector.tensors:
                values = projector.values(tensor.name)
                if tensor.type != "F32":
                    values = quantize(values, tensor.type, threads=conversion.threads)
                sink.write(tensor.name, np.ascontiguousarray(values))
            sink.commit()
    seconds = perf_counter() - start if write else None
    warnings = (*projector.warnings, *sink.warnings)
    return Result(projector.outtype, len(projector.tensors), sink.file_bytes, warnings, seconds)
