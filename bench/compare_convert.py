"""Compare the conversion of Hugging Face directories with llama.cpp's convert_hf_to_gguf.py.

    python -m bench.compare_convert --llama.cpp path/to/llama.cpp model-dir ...
    python -m bench.compare_convert --llama.cpp path/to/llama.cpp [--only NAME ...] [--out bench/results/convert]

Names what differs: tensors (names, order, shapes, types, bytes) and metadata (keys, order, types, values). Exit code 1
when anything does. Tensors are compared in the type the converter chose; where that is not the type the values are
stored in (`--type`), in float32.

Without directories the tiny models of all families are compared (tests/support/convert_models.py), and for each: the
distance of llama.cpp's logits from those of transformers, as a part of the largest; whether the model as Q4_K_M,
without a layer where another has the same tensors, runs in llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.machine import Machine, describe
from bench.tables import Column, as_json, heading, markdown, save
from quantmill.gguf_io.convert import Checkpoint, open_checkpoint
from quantmill.gguf_io.source import GGUFSource
from quantmill.gguf_io.tensors import TensorSource
from quantmill.jobs import quantize
from quantmill.qkernels import quantize as quantize_rows
from quantmill.recipe import Recipe
from tests.support import compared_logits
from tests.support.convert_models import MODELS, opened, write_model
from tests.support.llama_converter import Job, convert
from tests.support.llama_model import LlamaModel


@dataclass(frozen=True)
class Row:
    """distance: of the logits, None where they cannot be compared. quantized: runs as Q4_K_M without a layer."""

    model: str
    architecture: str
    n_tensors: int
    n_keys: int
    equal: bool
    distance: float | None
    near: bool | None
    quantized: bool | None


UNPRUNED = {
    "deepseek-v4": "xllamacpp's llama.cpp divides by zero where no layer has a cache of all tokens",
    "deepseek-v2-lite": "llama.cpp knows it by its 26 or 27 layers",
    "glm4-moe-draft-nextn": "a draft, without the model's layers",
    "qwen3.5-draft-nextn": "a draft, without the model's layers",
}
TITLE = "Conversion beside llama.cpp's"
COLUMNS = (
    Column("model", "model"),
    Column("general.architecture", "architecture"),
    Column("tensors", "n_tensors", "{:d}"),
    Column("keys", "n_keys", "{:d}"),
    Column("as upstream's", "equal"),
    Column("logits' distance", "distance", "{:.1e}"),
    Column("within arithmetic", "near"),
    Column("pruned, Q4_K_M", "quantized"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument(
        "--llama.cpp", dest="llama_cpp", type=Path, required=True, help="llama.cpp's source tree"
    )
    parser.add_argument("--type", default="auto", choices=["auto", "f32", "f16", "bf16"])
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="tiny models to compare, by name")
    parser.add_argument(
        "--out", type=Path, help="save as OUT.md and OUT.json; rows of other models there stay"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not options.models:
            rows = []
            machine = describe("bench.compare_convert", sys.argv[1:])
            for row in of_families(options.only, options.llama_cpp, Path(scratch)):
                rows.append(row)
                if options.out:
                    save(options.out, *written(machine, with_others(options.out, rows)))
            print(written(machine, rows)[0])
            right = (row.equal and row.near is not False and row.quantized is not False for row in rows)
            return int(not all(right))
        outputs = [Path(scratch) / f"{i}.gguf" for i in range(len(options.models))]
        jobs = [
            Job(str(model), str(out), options=["--outtype", options.type])
            for model, out in zip(options.models, outputs, strict=True)
        ]
        errors = convert(jobs, options.llama_cpp)
        differ = [
            failed(error) or differences(open_checkpoint(model, options.type), GGUFSource(out))
            for model, out, error in zip(options.models, outputs, errors, strict=True)
        ]
    for model, lines in zip(options.models, differ, strict=True):
        print(f"{model}: {'equal' if not lines else ''}")
        for line in lines:
            print(f"  {line}")
    return int(any(differ))


def written(machine: Machine, rows: Sequence[Row]) -> tuple[str, str]:
    """The table for people and for programs."""
    return f"{heading(TITLE, machine)}\n{markdown(COLUMNS, rows)}", as_json(machine, rows)


def with_others(out: Path, rows: Sequence[Row]) -> list[Row]:
    """These rows and those that OUT.json holds of other models, in the order of the list."""
    path = out.with_name(out.name + ".json")
    saved = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    found = {row["model"]: Row(**row) for row in saved} | {row.model: row for row in rows}
    return [found[name] for name in MODELS if name in found]


def failed(error: str) -> list[str]:
    return [f"the reference failed: {error.strip().splitlines()[-1]}"] if error else []


def of_families(names: Sequence[str], llama_cpp: Path, scratch: Path) -> Iterator[Row]:
    """The rows of tiny models, each as it is known; what differs goes to stderr."""
    jobs = []
    for name in names:
        directory = write_model(name, scratch / name / "Tiny-Model-1B-Instruct")
        pre = MODELS[name].tokenizer.partition("+")[0]
        jobs.append(
            Job(str(directory), str(scratch / f"{name}.gguf"), pre, MODELS[name].options, MODELS[name].raw)
        )
    for name, job, error in zip(names, jobs, convert(jobs, llama_cpp), strict=True):
        source = opened(name, Path(job.directory))
        lines = failed(error) or differences(source, GGUFSource(Path(job.out)))
        for line in lines:
            print(f"{name}: {line}", file=sys.stderr)
        yield _row(name, Path(job.directory), source, not lines, scratch)


def _row(name: str, directory: Path, source: Checkpoint, equal: bool, scratch: Path) -> Row:
    distance = None
    if name not in compared_logits.UNCOMPARABLE:
        expected = compared_logits.of_transformers(directory, name)
        found = compared_logits.of_llama_cpp(directory, scratch / f"{name}-f32.gguf")
        distance = compared_logits.distance(found, expected)
    return Row(
        name,
        str(source.metadata.value("general.architecture")),
        len(source.specs()),
        len(source.metadata),
        equal,
        distance,
        None if distance is None else distance <= compared_logits.tolerance(name),
        None if name in UNPRUNED else runs_quantized(directory, scratch / f"{name}-q4.gguf"),
    )


def spare_layer(directory: Path) -> tuple[int, ...]:
    """The last layer that has the same tensors as another: without the only one of a kind a model may not run. None
    where there is an embedding for each layer, which would have to be cut."""
    kinds: dict[int, set[str]] = {}
    with open_checkpoint(directory) as source:
        if any(spec.name == "per_layer_token_embd.weight" for spec in source.specs()):
            return ()
        for spec in source.specs():
            if spec.name.startswith("blk."):
                _, layer, kind = spec.name.split(".", 2)
                kinds.setdefault(int(layer), set()).add(kind)
    return tuple(sorted(layer for layer, kind in kinds.items() if list(kinds.values()).count(kind) > 1))[-1:]


def runs_quantized(directory: Path, path: Path) -> bool:
    """Whether llama.cpp computes finite logits of the model as Q4_K_M without a layer, where one can be spared."""
    quantize.run(quantize.Job(str(directory), path, Recipe("Q4_K_M", prune_layers=spare_layer(directory))))
    pooled = any(key.endswith(".pooling_type") for key in GGUFSource(path).metadata)
    with LlamaModel(path) as model:  # an embedding model is loaded only
        return pooled or bool(np.isfinite(model.logits(compared_logits.TOKENS)).all())


def differences(ours: Checkpoint, reference: TensorSource) -> list[str]:
    """One line for each difference; empty when the conversion is the same."""
    return [*metadata_differences(ours, reference), *tensor_differences(ours, reference)]


def metadata_differences(ours: TensorSource, reference: TensorSource) -> list[str]:
    lines = []
    for key in {**reference.metadata, **ours.metadata}:
        mine, theirs = ours.metadata.get(key), reference.metadata.get(key)
        if theirs is None:
            lines.append(f"{key}: only ours: {_short(ours.metadata.value(key))}")
        elif mine is None:
            lines.append(f"{key}: only theirs: {_short(theirs.value)}")
        elif mine.encode() != theirs.encode():
            kinds = f"{mine.type.name} and {theirs.type.name}, " if mine.type != theirs.type else ""
            lines.append(f"{key}: {kinds}{_first_difference(mine.value, theirs.value)}")
    if not lines and list(ours.metadata) != list(reference.metadata):
        lines.append("the same keys in another order")
    return lines


def tensor_differences(ours: TensorSource, reference: TensorSource) -> list[str]:
    mine = {spec.name: spec for spec in ours.specs()}
    theirs = {spec.name: spec for spec in reference.specs()}
    lines = [f"{name}: only theirs" for name in theirs if name not in mine]
    lines += [f"{name}: only ours" for name in mine if name not in theirs]
    if not lines and list(mine) != list(theirs):
        lines.append("the same tensors in another order")
    for name in mine.keys() & theirs.keys():
        a, b = mine[name], theirs[name]
        if a.shape != b.shape:
            lines.append(f"{name}: shape {a.shape}, theirs {b.shape}")
            continue
        left, right = ours.read(name), reference.read(name)
        if b.type == "F32" and a.type != "F32":
            lines.append(f"{name}: {a.type}, theirs F32")
        if b.type == "Q8_0" and a.type == "F32":  # DeepSeek V4's FP8
            left = quantize_rows(left.view(np.float32), b.type)
        elif a.type != b.type:
            left, right = _float32(left, a.type, b.type), _float32(right, b.type, b.type)
        if not np.array_equal(left.view(np.uint8), right.view(np.uint8)):
            count = int((left != right).any(axis=1).sum())
            lines.append(f"{name}: {a.type}, theirs {b.type}; {count} of {a.n_rows} rows differ")
    return lines


def _float32(raw: np.ndarray, type: str, target: str) -> np.ndarray:
    """Rows as float32, rounded to what `target` can hold."""
    if type == "BF16":
        values = (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = (
            np.ascontiguousarray(raw).view({"F32": np.float32, "F16": np.float16}[type]).astype(np.float32)
        )
    if target == "F16":
        return values.astype(np.float16).astype(np.float32)
    if target == "BF16":
        bits = values.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return values


def _first_difference(mine: object, theirs: object) -> str:
    if isinstance(mine, (str, int, float, bool)) or isinstance(theirs, (str, int, float, bool)):
        return f"ours {_short(mine)}, theirs {_short(theirs)}"
    left, right = list(mine), list(theirs)  # type: ignore[call-overload]
    if len(left) != len(right):
        return f"{len(left)} items, theirs {len(right)}"
    wrong = [i for i in range(len(left)) if left[i] != right[i]]
    shown = "; ".join(f"[{i}] ours {_short(left[i])}, theirs {_short(right[i])}" for i in wrong[:3])
    return f"{len(wrong)} of {len(left)} items differ: {shown}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


if __name__ == "__main__":
    sys.exit(main())
