"""Safetensors checkpoints: a single file or shards with an index, read as memory-mapped arrays.

The reader checks everything the format promises before a byte of data is used: a file from the network may be
truncated or hostile. Format: 8 bytes little-endian header length, that many bytes of JSON
({name: {dtype, shape, data_offsets: [begin, end]}}), then the data, without gaps or overlaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import open_regular

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
INDEX_NAME = "model.safetensors.index.json"

# BF16 and the eight-bit floats have no numpy type: their bits travel as unsigned integers.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies. shape: Hugging Face order. offset: in the file, bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def n_bytes(self) -> int:
        return _count(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def array(self) -> np.ndarray:
        """The tensor, [*shape], a read-only memory map; BF16 as uint16 bits, eight-bit floats as uint8."""
        if not _count(self.shape):
            return np.empty(self.shape, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)


def open_shards(directory: Path, warn: Callable[[str], None] = lambda text: None) -> dict[str, StoredTensor]:
    """All tensors of the checkpoint in `directory`: shards in name order, in each its tensors in name order.

    A tensor that lies in another shard than the index says is taken where it lies; of two, the one the index names.
    `warn` is told so. Raises GGUFError: no safetensors (pickle is refused), a broken file, an index that does not fit.
    """
    index = directory / INDEX_NAME
    weight_map = _weight_map(index) if index.is_file() else {}
    if weight_map:
        shards = [directory / name for name in sorted(set(weight_map.values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise GGUFError(
                f"{index}: names shards that are not there: {_some(missing)}; download them again"
            )
    else:
        shards = sorted(directory.glob("model*.safetensors"))
        if not shards:
            raise GGUFError(_no_safetensors(directory))
    holders: dict[str, list[StoredTensor]] = {}
    for shard in shards:
        for tensor in read_header(shard):
            holders.setdefault(tensor.name, []).append(tensor)
    tensors = {name: _one_of(held, weight_map.get(name), warn) for name, held in holders.items()}
    if weight_map:
        others = sorted(set(directory.glob("model*.safetensors")) - set(shards))
        tensors |= _from_other_shards(set(weight_map) - set(tensors), others)
        _check_against_index(index, weight_map, tensors, warn)
    return tensors


def _one_of(held: list[StoredTensor], named: str | None, warn: Callable[[str], None]) -> StoredTensor:
    """Of the tensors of one name that which lies in the shard that the index names."""
    if len(held) == 1:
        return held[0]
    name, files = held[0].name, [tensor.path.name for tensor in held]
    if named not in files:
        raise GGUFError(f"{held[1].path}: tensor {name} is already in {files[0]}")
    warn(f"{name} lies in {' and '.join(files)}; read from {named}, as the index says")
    return held[files.index(named)]


def _from_other_shards(wanted: set[str], shards: list[Path]) -> dict[str, StoredTensor]:
    """Tensors that no shard of the index holds but another file beside them does."""
    if not wanted:
        return {}
    return {tensor.name: tensor for shard in shards for tensor in read_header(shard) if tensor.name in wanted}


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file in name order. Raises GGUFError when it does not keep the format."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise GGUFError(
                f"{path}: header length {length} in a file of {size} bytes: truncated or not safetensors"
            )
        header = _json_object(path, file.read(length), "the header")
    start = 8 + length
    header.pop("__metadata__", None)
    tensors = [_stored(path, name, entry, start, size) for name, entry in header.items()]
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes)):
        if tensor.offset != end:
            what = (
                "overlaps another tensor"
                if tensor.offset < end
                else f"leaves {tensor.offset - end} bytes unused"
            )
            raise GGUFError(f"{path}: tensor {tensor.name} {what}; the header is wrong")
        end += tensor.n_bytes
    if end != size:
        raise GGUFError(f"{path}: {size} bytes, its header describes {end}; download it again")
    return sorted(tensors, key=lambda tensor: tensor.name)


def _stored(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise GGUFError(f"{path}: tensor {name}: its header entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise GGUFError(f"{path}: tensor {name} has dtype {dtype!r}; known are {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2) or not all(
        type(n) is int and 0 <= n < 2**48 for n in (*shape, *offsets)
    ):
        raise GGUFError(f"{path}: tensor {name}: shape {shape!r} or data_offsets {offsets!r} is malformed")
    tensor = StoredTensor(name, dtype, tuple(shape), path, start + offsets[0])
    if offsets[1] - offsets[0] != tensor.n_bytes:
        found, shape_text = offsets[1] - offsets[0], f"{dtype} {list(shape)}"
        raise GGUFError(f"{path}: tensor {name}: {found} bytes, {shape_text} needs {tensor.n_bytes}")
    if start + offsets[1] > size:
        raise GGUFError(f"{path}: tensor {name} ends behind the file; it is truncated, download it again")
    return tensor


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _json_object(index, index.read_bytes(), "the index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise GGUFError(f"{index}: has no weight_map")
    for name, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or "\\" in shard
            or shard in ("", "..", ".")
        ):
            raise GGUFError(f"{index}: shard name {shard!r} of {name} is not a plain file name; not followed")
    return weight_map


def _check_against_index(
    index: Path,
    weight_map: dict[str, str],
    tensors: dict[str, StoredTensor],
    warn: Callable[[str], None],
) -> None:
    missing = sorted(name for name in weight_map if name not in tensors)
    if missing:
        raise GGUFError(f"{index}: no shard holds {_some(missing)}; download the checkpoint again")
    extra = sorted(name for name in tensors if name not in weight_map)
    if extra:
        raise GGUFError(f"{index}: does not name {_some(extra)}, which the shards hold")
    moved = sorted(name for name, shard in weight_map.items() if tensors[name].path.name != shard)
    if moved:
        verb = "lies in another shard" if len(moved) == 1 else "lie in other shards"
        warn(f"{index}: {_some(moved)} {verb} than the index says; read from where it lies")


def _no_safetensors(directory: Path) -> str:
    pickles = sorted(
        path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        return (
            f"{directory}: only pickle files ({_some(pickles)}); loading pickle can run any code, so it is "
            "refused. Use the model's safetensors revision, or convert it once with safetensors' own script."
        )
    return f"{directory}: no model*.safetensors and no {INDEX_NAME} here"


def _json_object(path: Path, data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GGUFError(f"{path}: {what} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise GGUFError(f"{path}: {what} is not a JSON object")
    return value


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
