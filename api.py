"""What `import quantmill` offers, for arrays and for files. Each function loads what it needs when it is called.

`device` means the same everywhere: "auto" (the first CUDA or ROCm device, else the CPU), "cpu", "cuda", "cuda:1",
"mps", "xpu", or a torch.device. It changes the speed, never the bytes of a quantized file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quantmill.errors import QuantmillError, explained_imports

if TYPE_CHECKING:
    import numpy as np
    import torch

    from quantmill.gguf_io import GGUFSource
    from quantmill.jobs.convert import Result as ConversionResult
    from quantmill.jobs.quantize import Result
    from quantmill.qkernels.types import QuantType
    from quantmill.recipe import Recipe

    Array = TypeVar("Array", np.ndarray, torch.Tensor)

Place = str | PathLike[str]


@explained_imports()
def quantize(
    rows: Array,
    type: str | QuantType,
    importance: Any = None,
    *,
    device: str | torch.device = "auto",
    threads: int | None = None,
    search: str = "default",
) -> Array:
    """rows [..., n_cols] in float32, float16, bfloat16 (or float64, rounded to float32) → uint8 [..., row_bytes].

    numpy in, numpy out; a tensor gives a tensor on its own device. Each row is quantized by itself, so leading
    dimensions (experts) are free. The bytes are those of llama.cpp's quantizer. importance: [n_cols], or for stacked
    matrices a vector each, [..., n_cols]. device "auto" leaves a tensor on a GPU there. threads: of the CPU, None for
    all cores. search: "thorough" gives other blocks of the type, none with a larger Σ importance·(row - decoded)².
    Raises QuantmillError: an unknown type, device or search, a row that is not whole blocks, importance that is missing
    or of another length, NaN or infinity, weights beyond the type's scales. (ggml.c: ggml_quantize_chunk.)
    """
    from quantmill.qkernels.arrays import quantize_array

    return quantize_array(rows, type, importance, device, threads, search)


@explained_imports()
def dequantize(
    blocks: Array,
    type: str | QuantType,
    *,
    device: str | torch.device = "auto",
    threads: int | None = None,
) -> Array:
    """blocks uint8 [..., row_bytes] → float32 [..., n_cols], as ggml's to_float decodes them; numpy in, numpy out.

    Raises QuantmillError for an unknown type or device, blocks that are not bytes, a row that ends inside a block.
    """
    from quantmill.qkernels.arrays import dequantize_array

    return dequantize_array(blocks, type, device, threads)


def open_gguf(path: Place) -> GGUFSource:
    """A GGUF model, of a split one its first file, for reading: `metadata`, `specs()`, `read(name)` → uint8 rows.

    with open_gguf("model.gguf") as model:
        for spec in model.specs():
            weights = dequantize(model.read(spec.name), spec.type)

    Raises QuantmillError when it is not sound, OSError when it cannot be read.
    """
    from quantmill.gguf_io import GGUFSource

    return GGUFSource(path)


@explained_imports()
def convert(
    model: Place,
    output: Place,
    type: str = "auto",
    *,
    revision: str | None = None,
    device: str | torch.device = "auto",
    threads: int | None = None,
    force: bool = False,
    fp8_as_q8: bool = False,
) -> ConversionResult:
    """A Hugging Face directory, or org/name on the hub → a GGUF in f32, f16, bf16 or q8_0 ("auto": as it is stored).

    The file equals what llama.cpp's convert_hf_to_gguf.py writes, tensors and keys. force: replace a file of another
    kind. fp8_as_q8: what is stored as FP8 becomes Q8_0, the rest `type`. Raises QuantmillError, OSError; then nothing
    has been written.
    """
    from quantmill.jobs.convert import Conversion, run
    from quantmill.jobs.hub import local_model

    place = local_model(str(model), revision)
    return run(Conversion(place, Path(output), type, str(device), threads, force, fp8_as_q8))


@explained_imports()
def quantize_model(
    model: Place,
    output: Place,
    type: str | Recipe,
    *,
    imatrix: Place | None = None,
    tensor_types: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    allow_requantize: bool = False,
    search: str = "default",
    calibration: Place | Sequence[Place] = (),
    compensate: bool = False,
    effort: str = "normal",
    chunks: int | None = None,
    alpha: float | None = None,
    damping: float = 0.01,
    polish: bool = False,
    resume: bool = False,
    keep_norms: bool = False,
    revision: str | None = None,
    device: str | torch.device = "auto",
    threads: int | None = None,
    force: bool = False,
) -> Result:
    """A GGUF, a Hugging Face directory or org/name on the hub → a GGUF of a file type such as "Q4_K_M".

    imatrix: file of an importance matrix. tensor_types: regular expression → tensor type; the first that matches
    wins. search: "thorough" finds better blocks of the same types than llama.cpp's quantizer, whose bytes "default"
    gives. type: a quantmill.recipe.Recipe instead says all that the command line can (then without the three above it).
    compensate: choose codes that undo each other's errors on the texts of `calibration`, needed then; effort ("fast",
    "normal", "thorough"), chunks, alpha, damping, polish, resume and keep_norms are those of `quantmill quantize
    --compensate`.
    Raises QuantmillError (jobs.errors.PlanError has all `problems`), OSError; then nothing has been written.
    """
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.quantize import Job, run

    job = Job(
        str(local_model(str(model), revision)),
        Path(output),
        _recipe(type, tensor_types, allow_requantize, search),
        imatrix=None if imatrix is None else str(imatrix),
        device=str(device),
        threads=threads,
        force=force,
    )
    if not compensate:
        asked = (
            effort != "normal",
            chunks is not None,
            alpha is not None,
            damping != 0.01,
            resume,
            keep_norms,
        )
        if calibration or polish or any(asked):
            raise QuantmillError(
                "calibration, effort, chunks, alpha, damping, polish, resume and keep_norms belong to compensate=True"
            )
        return run(job)
    from quantmill.imatrix.text import text_argument
    from quantmill.jobs.compensate import run as compensated
    from quantmill.jobs.compensate_request import Calibration

    given = [calibration] if isinstance(calibration, str | PathLike) else calibration
    texts = tuple(str(text) for text in given)
    job = replace(job, inputs=tuple(str(text_argument(text).path) for text in texts))
    return compensated(job, Calibration(texts, effort, chunks, alpha, damping, resume, polish, keep_norms))


def _recipe(
    type: str | Recipe,
    tensor_types: Mapping[str, str] | Iterable[tuple[str, str]],
    allow_requantize: bool,
    search: str,
) -> Recipe:
    from quantmill.recipe import Recipe, get_search, parse_rule

    pairs = tuple(tensor_types.items() if isinstance(tensor_types, Mapping) else tensor_types)
    if not isinstance(type, Recipe):
        rules = tuple(parse_rule(f"{pattern}={name}") for pattern, name in pairs)
        return Recipe(type, rules=rules, allow_requantize=allow_requantize, search=get_search(search))
    if pairs or allow_requantize or search != "default":
        raise QuantmillError(
            "tensor_types, allow_requantize and search belong to a type's name; a Recipe has its own"
        )
    return type
