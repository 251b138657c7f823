"""Compare the conversion of Hugging Face directories with llama.cpp's convert_hf_to_gguf.py.

    python -m bench.compare_convert --converter path/to/llama.cpp/convert_hf_to_gguf.py model-dir ...

Prints for each directory what differs: tensors (names, order, shapes, types, bytes) and metadata (keys, order,
types, values). Exit code 1 when anything does. Tensors are compared in the type the converter chose; where that is
not the type the values are stored in (`--type`), in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from quantmill.gguf_io.convert import Checkpoint, open_checkpoint
from quantmill.gguf_io.source import GGUFSource
from quantmill.gguf_io.tensors import TensorSource


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--type", default="auto", choices=["auto", "f32", "f16", "bf16"])
    options = parser.parse_args()
    found = False
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            reference = Path(scratch) / "reference.gguf"
            run = subprocess.run(
                [sys.executable, options.converter, model, "--outfile", reference, "--outtype", options.type],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                print(f"{model}: the reference failed: {run.stderr.strip().splitlines()[-1]}")
                found = True
                continue
            lines = differences(open_checkpoint(model, options.type), GGUFSource(reference))
        print(f"{model}: {'equal' if not lines else ''}")
        for line in lines:
            print(f"  {line}")
        found = found or bool(lines)
    return int(found)


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
        if a.type != b.type:
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
