"""A model in several files: names and keys as llama-gguf-split has them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS_COUNT = "split.no", "split.count", "split.tensors.count"
# The order in which llama-quantize --keep-split writes them, and llama-gguf-split, which sets the count last.
ORDER_OF_QUANTIZE = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS_COUNT)
ORDER_OF_GGUF_SPLIT = (SPLIT_NO, SPLIT_TENSORS_COUNT, SPLIT_COUNT)
MAX_SHARDS = 2**16 - 1  # split.count is a u16


def shard_suffix(number: int, count: int) -> str:
    """`-00001-of-00003.gguf` for number 0 of 3. Source: llama.cpp: llama_split_path."""
    return f"-{number + 1:05d}-of-{count:05d}.gguf"


def split_metadata(
    number: int, count: int, n_tensors: int, first: Metadata, order: Sequence[str]
) -> Metadata:
    """The keys of shard `number`: those of `first` for number 0 only, then split.* in `order`."""
    values = {
        SPLIT_NO: MetaValue(GGUFValueType.UINT16, number),
        SPLIT_COUNT: MetaValue(GGUFValueType.UINT16, count),
        SPLIT_TENSORS_COUNT: MetaValue(GGUFValueType.INT32, n_tensors),
    }
    metadata = first if number == 0 else Metadata()
    for key in order:
        metadata = metadata.set(key, values[key])
    return metadata


def split_paths(path: Path, metadata: Metadata) -> tuple[Path, ...]:
    """All files of the model whose first file is `path`, in order; `path` alone when it is not split.

    Raises GGUFError when `path` is a later shard, is not named as a shard, or shards are missing.
    """
    count, number = (_whole_number(path, metadata, key) for key in (SPLIT_COUNT, SPLIT_NO))
    if count <= 1:
        return (path,)
    suffix = shard_suffix(number, count)
    if not path.name.endswith(suffix) or path.name == suffix:
        raise GGUFError(
            f"{path}: shard {number + 1} of {count}, so its name must end in {suffix}; give it its old name"
        )
    prefix = path.name.removesuffix(suffix)
    if number != 0:
        raise GGUFError(
            f"{path}: this is shard {number + 1} of {count}; open the first, {prefix}{shard_suffix(0, count)}"
        )
    paths = tuple(path.with_name(prefix + shard_suffix(shard, count)) for shard in range(count))
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing:
        raise GGUFError(
            f"{path}: {len(missing)} of {count} shards are missing, the first is {missing[0]}; fetch them"
        )
    return paths


def _whole_number(path: Path, metadata: Metadata, key: str) -> int:
    value = metadata.value(key, 0)
    if not isinstance(value, int) or not 0 <= value <= MAX_SHARDS:
        raise GGUFError(
            f"{path}: {key} is {reprlib.repr(value)}, expected a number up to {MAX_SHARDS}; the file is damaged"
        )
    return value
