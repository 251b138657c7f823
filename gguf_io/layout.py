"""Where every byte of the output goes, known before there is any data."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantmill.gguf_io.errors import GGUFError, shown
from quantmill.gguf_io.header import ALIGNMENT, DEFAULT_ALIGNMENT, MAGIC, alignment_of
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue, encode_string
from quantmill.gguf_io.splits import (
    MAX_SHARDS,
    ORDER_OF_GGUF_SPLIT,
    ORDER_OF_QUANTIZE,
    shard_suffix,
    split_metadata,
)
from quantmill.gguf_io.tensors import TensorSpec, checked_shape
from quantmill.gguf_io.types import GGML_TYPES

VERSION = 3


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written. shape: ggml order, columns first; `shard`, from 0, matters with keep_split."""

    name: str
    shape: tuple[int, ...]
    type: str
    shard: int = 0


@dataclass(frozen=True)
class FileLayout:
    """One output file: everything before the data, and where each tensor goes (`offset` from the start)."""

    path: Path
    header: bytes
    tensors: tuple[TensorSpec, ...]
    file_bytes: int


def lay_out(
    path: str | os.PathLike[str],
    metadata: Metadata,
    tensors: Sequence[OutputTensor],
    *,
    keep_split: bool = False,
    split_max_bytes: int | None = None,
) -> tuple[FileLayout, ...]:
    """The files that a GGUFSink with these arguments writes; touches no disk.

    One file at `path`, unless keep_split puts each tensor into its `shard` or split_max_bytes limits the
    tensor data of a file (a larger tensor gets a file of its own). Then `model.gguf` becomes
    `model-00001-of-00003.gguf` and so on. The keys split.* belong to the layout: set or removed here.

    `general.alignment` is honoured: offsets and padding follow the key, as llama.cpp reads them, where
    llama-quantize copies the key, writes 32, and the file does not load. Below 32 the key is raised to 32,
    for llama.cpp reads such a file and then stops at its own TENSOR_ALIGNMENT. Later shards have no key,
    hence 32.

    Raises GGUFError when a name, shape, type, key or the number of files is impossible; ValueError for both ways
    to split at once.
    Source: gguf.cpp: gguf_write_to_buf; llama-quant.cpp: llama_model_quantize_impl; gguf-split.cpp:
    split_strategy.
    """
    if keep_split and split_max_bytes is not None:
        raise ValueError("keep_split and split_max_bytes are two answers to one question")
    checked = _checked(tensors)
    path = Path(path)
    metadata = metadata.without(*ORDER_OF_QUANTIZE)
    if alignment_of(metadata, str(path)) < DEFAULT_ALIGNMENT:
        metadata = metadata.replace(ALIGNMENT, MetaValue(GGUFValueType.UINT32, DEFAULT_ALIGNMENT))
    if split_max_bytes is not None:
        checked = _numbered_by_size(checked, split_max_bytes, alignment_of(metadata, str(path)))
    elif not keep_split:
        return (_file_layout(path, metadata, checked, 0),)
    count = max((tensor.shard for tensor in checked), default=0) + 1
    if count > MAX_SHARDS:
        raise GGUFError(f"{path}: {count} files, split.count holds at most {MAX_SHARDS}; allow larger files")
    order: Sequence[str] = ORDER_OF_GGUF_SPLIT
    if keep_split:
        order = ORDER_OF_QUANTIZE if count > 1 else ()  # llama-quantize has no split.* in a single file
    members: list[list[OutputTensor]] = [[] for _ in range(count)]
    for tensor in checked:
        members[tensor.shard].append(tensor)
    prefix = path.name.removesuffix(".gguf")
    return tuple(
        _file_layout(
            path.with_name(prefix + shard_suffix(number, count)),
            split_metadata(number, count, len(checked), metadata, order),
            members[number],
            number,
        )
        for number in range(count)
    )


def _checked(tensors: Sequence[OutputTensor]) -> list[OutputTensor]:
    checked: dict[str, OutputTensor] = {}
    for tensor in tensors:
        if tensor.name in checked:
            raise GGUFError(
                f"{shown(tensor.name)}: declared twice; each tensor of a model needs its own name"
            )
        if tensor.shard < 0:
            raise GGUFError(f"{shown(tensor.name)}: shard {tensor.shard}; shards count from 0")
        shape = checked_shape(tensor.name, tensor.shape, tensor.type)
        checked[tensor.name] = OutputTensor(tensor.name, shape, tensor.type, tensor.shard)
    return list(checked.values())


def _numbered_by_size(tensors: list[OutputTensor], limit: int, alignment: int) -> list[OutputTensor]:
    """Cut where the next tensor would pass the limit; tensor data with padding counts, the header does not.

    Source: gguf-split.cpp: should_split.
    """
    if limit <= 0:
        raise GGUFError(f"files of at most {limit} bytes hold no tensor; give a larger size")
    numbered = []
    shard = filled = 0
    for tensor in tensors:
        size = _padded(_n_bytes(tensor), alignment if shard == 0 else DEFAULT_ALIGNMENT)
        if filled and filled + size > limit:
            shard, filled = shard + 1, 0
            size = _padded(_n_bytes(tensor), DEFAULT_ALIGNMENT)
        filled += size
        numbered.append(OutputTensor(tensor.name, tensor.shape, tensor.type, shard))
    return numbered


def _n_bytes(tensor: OutputTensor) -> int:
    return TensorSpec(tensor.name, tensor.shape, tensor.type, 0, 0).n_bytes


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment


def _file_layout(path: Path, metadata: Metadata, tensors: Sequence[OutputTensor], shard: int) -> FileLayout:
    alignment = alignment_of(metadata, str(path))
    entries, offsets, filled = [], [], 0
    for tensor in tensors:
        entries.append(
            encode_string(tensor.name)
            + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            + struct.pack("<IQ", GGML_TYPES[tensor.type].id, filled)
        )
        offsets.append(filled)
        filled += _padded(_n_bytes(tensor), alignment)
    header = (
        MAGIC
        + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
        + metadata.encode()
        + b"".join(entries)
    )
    header += bytes(-len(header) % alignment)
    placed = tuple(
        TensorSpec(tensor.name, tensor.shape, tensor.type, shard, len(header) + offset)
        for tensor, offset in zip(tensors, offsets, strict=True)
    )
    return FileLayout(path, header, placed, len(header) + filled)
