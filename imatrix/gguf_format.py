"""The GGUF format: raw sums and counts, one pair of tensors a weight, written in the order of the names.

`<name>.in_sum2` F32 [n_cols, n_mat], `<name>.counts` F32 [1, n_mat], optional `<name>.in_sum` (Σx, which
stock llama.cpp passes over). Source: tools/imatrix/imatrix.cpp: save_imatrix, common/imatrix-loader.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.gguf_io.sink import GGUFSink, OutputTensor
from quantmill.gguf_io.source import TensorSource, open_source
from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix, checked_entry

DATASETS, CHUNK_COUNT, CHUNK_SIZE = (
    "imatrix.datasets",
    "imatrix.chunk_count",
    "imatrix.chunk_size",
)
SUFFIXES = (".in_sum2", ".counts", ".in_sum")
_TYPES = {"f": "F32", "i": "I64"}


def read_gguf(path: Path) -> ImportanceMatrix:
    """Read an importance matrix from a GGUF file.

    Raises ImatrixError when a key is missing, a sum lacks its counts, or a value is not finite; GGUFError
    when the file is not a sound GGUF; OSError when it cannot be read.
    """
    source = open_source(path)
    try:
        chunk_count = _number(path, source.metadata, CHUNK_COUNT)
        chunk_size = _number(path, source.metadata, CHUNK_SIZE)
        if chunk_size == 0:
            raise ImatrixError(f"{path}: {CHUNK_SIZE} is 0; the file is damaged")
        datasets = _required(path, source.metadata, DATASETS)
        if datasets.type != GGUFValueType.ARRAY or datasets.element_type != GGUFValueType.STRING:
            raise ImatrixError(f"{path}: {DATASETS} is not an array of strings")
        return ImportanceMatrix(_read_entries(path, source), tuple(datasets.value), chunk_count, chunk_size)
    finally:
        source.close()


def _required(path: Path, metadata: Metadata, key: str) -> MetaValue:
    if key not in metadata:
        raise ImatrixError(f"{path}: not an importance matrix: the key {key} is missing")
    return metadata[key]


def _number(path: Path, metadata: Metadata, key: str) -> int:
    found = _required(path, metadata, key)
    if found.type != GGUFValueType.UINT32:
        raise ImatrixError(f"{path}: {key} is of type {found.type.name}, expected UINT32")
    return int(found.value)


def _read_entries(path: Path, source: TensorSource) -> dict[str, Entry]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for spec in source.specs():
        suffix = next((end for end in SUFFIXES if spec.name.endswith(end)), None)
        if suffix is None:
            continue
        if spec.type != "F32":
            raise ImatrixError(f"{path}: {spec.name} is {spec.type}, sums and counts must be F32")
        values = np.ascontiguousarray(source.read(spec.name)).view(np.float32)
        found.setdefault(spec.name.removesuffix(suffix), {})[suffix] = values.reshape(-1)
    if not found:
        raise ImatrixError(f"{path}: not an importance matrix: it holds no sums")
    return {name: _entry(path, name, parts) for name, parts in found.items()}


def _entry(path: Path, name: str, parts: dict[str, np.ndarray]) -> Entry:
    for suffix in (".in_sum2", ".counts"):
        if suffix not in parts:
            raise ImatrixError(f"{path}: {name}{suffix} is missing; the file is damaged: collect it again")
    sums, counts = parts[".in_sum2"], parts[".counts"]
    if sums.size == 0 or counts.size == 0 or sums.size % counts.size:
        raise ImatrixError(f"{path}: {name}: {sums.size} sums cannot belong to {counts.size} counts")
    mean_sums = parts.get(".in_sum")
    if mean_sums is not None and mean_sums.size != sums.size:
        raise ImatrixError(f"{path}: {name}: {mean_sums.size} values of Σx beside {sums.size} of Σx²")
    shape = (counts.size, sums.size // counts.size)
    entry = checked_entry(
        name, sums.reshape(shape), counts, None if mean_sums is None else mean_sums.reshape(shape)
    )
    # lround: halves away from zero; a count is a whole number of rows below 2^62 or the file is damaged
    rounded = np.floor(entry.counts.astype(np.float64) + 0.5)
    if rounded.max() >= 2.0**62:
        raise ImatrixError(f"{path}: {name}: a count of {rounded.max():g} rows; the file is damaged")
    return Entry(entry.in_sum2, rounded.astype(np.int64), entry.in_sum)


def write_gguf(
    path: Path,
    matrix: ImportanceMatrix,
    keys: Mapping[str, MetaValue] = MappingProxyType({}),
    arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Write llama-imatrix's own bytes (plus `.in_sum` where there is one); atomic. keys, arrays (f32, i64): what
    follows them.

    Raises GGUFError when a name is too long for GGUF or the disk is full.
    """
    metadata = {
        "general.type": MetaValue(GGUFValueType.STRING, "imatrix"),
        DATASETS: MetaValue(GGUFValueType.ARRAY, list(matrix.datasets), GGUFValueType.STRING),
        CHUNK_COUNT: MetaValue(GGUFValueType.UINT32, matrix.chunk_count),
        CHUNK_SIZE: MetaValue(GGUFValueType.UINT32, matrix.chunk_size),
    }
    data: dict[str, np.ndarray] = {}
    for name, entry in matrix.entries.items():
        data[f"{name}.in_sum2"] = entry.in_sum2
        data[f"{name}.counts"] = entry.counts[:, None].astype(np.float32)
        if entry.in_sum is not None:
            data[f"{name}.in_sum"] = entry.in_sum
    data |= arrays
    tensors = [
        OutputTensor(name, values.shape[::-1], _TYPES[values.dtype.kind]) for name, values in data.items()
    ]
    with GGUFSink(
        path, Metadata(metadata | dict(keys)), tensors, force=True
    ) as sink:  # the output rule is the caller's
        for name, values in data.items():
            sink.write(name, np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8))
        sink.commit()
