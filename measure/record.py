"""The record of an evaluation: what was measured, on which files, with which command; as JSON and as CSV.

`quantmill evaluate -o run.json` writes one, `quantmill report` reads any number of them. A number that is not known
or not finite is null there and empty in a table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from quantmill.gguf_io.filesystem import digest, read_whole
from quantmill.gguf_io.kinds import Kind, json_object, starting_with
from quantmill.gguf_io.outputs import Output
from quantmill.gguf_io.partial import write_whole
from quantmill.gguf_io.source import open_source
from quantmill.measure.divergence import Divergence
from quantmill.measure.errors import MeasureError
from quantmill.measure.perplexity import Estimate
from quantmill.measure.speed import Speed
from quantmill.plain_json import json_text

FORMAT = 1
_INFINITE = (math.inf, -math.inf)
RECORD = json_object("an evaluation record", "format", "models")
TABLE = starting_with("a table of evaluations", b"name,bytes,bits_per_weight")
# Metadata that a page or a card shows; of quantmill's own keys all.
FACTS = (
    "general.name",
    "general.license",
    "general.base_model.0.repo_url",
    "quantize.imatrix.file",
    "quantize.imatrix.dataset",
    "quantize.imatrix.chunks_count",
)
_LONGEST_FACT = 200
PRUNED = "quantmill.pruned."  # keys that hold lists, of layers and of experts


@dataclass(frozen=True)
class TensorRow:
    name: str
    type: str
    n_weights: int
    n_bytes: int


@dataclass(frozen=True)
class ModelFile:
    """bytes of all files of the model; bits_per_weight of its tensors alone; sha256 of the files in order.

    facts: what the metadata says of the model's origin and of how it was quantized, as text (see FACTS).
    """

    name: str
    path: str
    bytes: int
    n_weights: int
    bits_per_weight: float
    sha256: str
    architecture: str
    tensors: tuple[TensorRow, ...]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """kind: hellaswag, winogrande, or the name of a multiple-choice file. right: per task in the order of the file
    or draw, so that two runs can be paired."""

    kind: str
    file: str
    sha256: str
    accuracy: Estimate
    chance: float
    right: tuple[bool, ...]


@dataclass(frozen=True)
class ModelResult:
    """chunk_kld: mean KL divergence of each chunk, so that two runs can be paired."""

    file: ModelFile
    ppl: Estimate | None = None
    divergence: Divergence | None = None
    chunk_kld: tuple[float, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    speed: tuple[Speed, ...] = ()
    lm_eval: dict[str, float] | None = None


@dataclass(frozen=True)
class TextInfo:
    path: str
    sha256: str
    n_ctx: int
    n_chunks: int
    n_scored: int


@dataclass(frozen=True)
class Comparison:
    """Is model `a` better than `b` (names) by `measure` ("kld" or a task)? difference a − b, two-sided p."""

    measure: str
    a: str
    b: str
    difference: float
    p_value: float


@dataclass(frozen=True)
class Run:
    """ranking: names of the models by KL divergence, least first."""

    version: str
    command: str
    date: str
    machine: str
    device: str
    models: tuple[ModelResult, ...]
    base: ModelResult | None = None
    text: TextInfo | None = None
    ranking: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    format: int = FORMAT


def describe(path: Path) -> ModelFile:
    """What a model's files say about themselves; of a directory, its safetensors files."""
    source = open_source(path)
    rows = []
    for spec in source.specs():
        n_weights = spec.n_cols * spec.n_rows
        rows.append(TensorRow(spec.name, spec.type, n_weights, spec.n_bytes))
    paths = [Path(p) for p in source.paths]
    architecture = source.metadata["general.architecture"].value
    facts = {
        key: text for key, value in source.metadata.items() if (text := _fact(key, value.value)) is not None
    }
    source.close()
    if path.is_dir():
        paths = sorted(path.glob("*.safetensors"))
    n_weights = sum(row.n_weights for row in rows)
    return ModelFile(
        name=path.resolve().name if path.is_dir() else path.stem,
        path=str(path),
        bytes=sum(p.stat().st_size for p in paths),
        n_weights=n_weights,
        bits_per_weight=8 * sum(row.n_bytes for row in rows) / n_weights,
        sha256=digest(paths),
        architecture=architecture,
        tensors=tuple(rows),
        facts=facts,
    )


def _fact(key: str, value: Any) -> str | None:
    """The value as text when it is one of FACTS and short; of a file its name, as paths tell about their owner."""
    if key not in FACTS and not key.startswith("quantmill."):
        return None
    if key.startswith(PRUNED) and isinstance(value, Sequence) and not isinstance(value, str):
        numbers = all(isinstance(one, int | float) for one in value)  # a file may say anything
        return ",".join(f"{one:.6g}" for one in value) if numbers else None
    if not isinstance(value, str | int | float) or len(str(value)) > _LONGEST_FACT:
        return None
    return PurePath(str(value)).name if key.endswith((".file", ".dataset")) else str(value)


def named(files: Sequence[ModelFile]) -> list[ModelFile]:
    """Files with names that differ: the directory is added where two are called the same."""
    names = [file.name for file in files]
    out = []
    for file in files:
        if names.count(file.name) > 1:
            file = replace(file, name=f"{Path(file.path).resolve().parent.name}/{file.name}")
        out.append(file)
    return out


def kind_of_record(path: Path) -> Kind:
    """What an output of this name holds. Raises MeasureError when it ends in neither .json nor .csv."""
    kinds = {".json": RECORD, ".csv": TABLE}
    if path.suffix.lower() not in kinds:
        raise MeasureError(f"{path}: an evaluation is written as .json or as .csv; give the file such a name")
    return kinds[path.suffix.lower()]


def write_record(run: Run, output: Output) -> None:
    """As JSON or as a table, by the output's kind (kind_of_record)."""
    text = to_csv(run) if output.kind is TABLE else to_json(run)
    write_whole(output.final, text.encode("utf-8"))


def to_json(run: Run) -> str:
    return json_text(asdict(run)) + "\n"


def from_json(path: Path) -> Run:
    """Read a record. Raises MeasureError when the file is not one."""
    try:
        data = json.loads(read_whole(path).decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MeasureError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise MeasureError(
            f"{path}: not a quantmill evaluation record of format {FORMAT}; quantmill evaluate -o run.json writes one"
        )
    try:
        return _built(Run, data)
    except (KeyError, TypeError, ValueError) as error:
        raise MeasureError(f"{path}: a damaged evaluation record ({error!r})") from error


def _built(kind: Any, value: Any) -> Any:
    """A value of JSON as the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        # What later versions added has a default; older records do without it.
        added = {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING}
        given = [f.name for f in fields(kind) if f.name in value or f.name not in added]
        return kind(**{name: _built(hints[name], value[name]) for name in given})
    if origin is types.UnionType:
        return None if value is None else _built(arguments[0], value)
    if origin is tuple:
        return tuple(_built(arguments[0], one) for one in value)
    if origin is dict:
        return {arguments[0](key): _built(arguments[1], one) for key, one in value.items()}
    if value is None and kind is float:
        return math.nan
    if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


CSV_COLUMNS = (
    "name", "bytes", "bits_per_weight", "ppl", "ppl_error", "ppl_base", "ln_ratio", "ln_ratio_error", "correlation",
    "kld", "kld_error", "kld_median", "kld_99", "kld_99.9", "kld_max", "p_diff", "p_diff_error", "p_diff_rms",
    "p_diff_rms_error", "same_top", "same_top_error",
)  # fmt: skip


def to_csv(run: Run) -> str:
    """One row a model, base first; columns of tasks and speed tests follow the fixed ones."""
    results = ([run.base] if run.base else []) + list(run.models)
    tasks = sorted({task.kind for result in results for task in result.tasks})
    tests = list(dict.fromkeys(speed.test for result in results for speed in result.speed))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *tasks, *(f"{task}_error" for task in tasks), *tests])
    for result in results:
        accuracy = {task.kind: task.accuracy for task in result.tasks}
        rates = {speed.test: speed.mean for speed in result.speed}
        row = [
            *_csv_row(result),
            *(accuracy[task].value if task in accuracy else None for task in tasks),
            *(accuracy[task].error if task in accuracy else None for task in tasks),
            *(rates.get(test) for test in tests),
        ]
        writer.writerow(["" if cell is None or cell != cell or cell in _INFINITE else cell for cell in row])
    return out.getvalue()


def _csv_row(result: ModelResult) -> list[Any]:
    file, ppl, d = result.file, result.ppl, result.divergence
    row: list[Any] = [file.name, file.bytes, file.bits_per_weight]
    row += [ppl.value, ppl.error] if ppl else ["", ""]
    if d is None:
        return row + [""] * (len(CSV_COLUMNS) - len(row))
    return [
        *row,
        d.ppl_base.value, d.ln_ratio.value, d.ln_ratio.error, d.correlation,
        d.kld.value, d.kld.error, d.kld_percentiles[50.0], d.kld_percentiles[99.0], d.kld_percentiles[99.9], d.kld_max,
        d.p_diff.value, d.p_diff.error, d.p_diff_rms.value, d.p_diff_rms.error, d.same_top.value, d.same_top.error,
    ]  # fmt: skip
