"""What a tensor in a file is, and what every source of tensors offers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantmill.gguf_io.errors import GGUFError, quoted, shown
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.types import GGML_TYPES

if TYPE_CHECKING:
    import numpy as np

MAX_NAME_BYTES = 63  # ggml.h: GGML_MAX_NAME is 64 with the closing NUL
MAX_DIMS = 4
MAX_BYTES = 2**63 - 1


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a file. shape: ggml order, columns first, trailing 1s dropped, at least one dimension.

    `type` is ggml's name, `shard` counts the files of a split model from 0, `offset` is the position of the
    first byte in that file. `original`: quantized as the model was published, so that there is nothing better to start
    from.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    shard: int
    offset: int
    original: bool = False

    @property
    def n_cols(self) -> int:
        return self.shape[0]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        row = GGML_TYPES[self.type]
        return self.n_cols // row.block * row.bytes

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes

    def wanted_rows(self, first_row: int, n_rows: int | None) -> int:
        """How many rows `n_rows` from `first_row` on are; None: to the last. GGUFError for rows it does not have."""
        if n_rows is None:
            n_rows = self.n_rows - first_row
        if first_row < 0 or n_rows < 0 or first_row + n_rows > self.n_rows:
            raise GGUFError(f"{shown(self.name)}: rows {first_row} to {first_row + n_rows} of {self.n_rows}")
        return n_rows


class TensorSource(Protocol):
    """A model whose tensors can be read row by row: a GGUF file, or a Hugging Face checkpoint seen as one."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read, the first shard first."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the model's files; one line each."""

    def specs(self) -> tuple[TensorSpec, ...]:
        """All tensors, in the order of the shards and of their entries there."""

    def read(self, name: str, first_row: int = 0, n_rows: int | None = None) -> np.ndarray:
        """uint8 [n_rows, row_bytes]: raw blocks in the type of the spec; without n_rows, to the last row.

        A read-only view of the mapped file where possible. Raises GGUFError for an unknown tensor or rows it
        does not have.
        """

    def fetch(self, name: str, first_row: int = 0, n_rows: int | None = None) -> tuple[np.ndarray, str]:
        """As `read`, or the same values in other blocks, which are nearer to the file, and the type of these: one of
        qkernels' CHECKPOINT_TYPES. What is quantized next is decoded where it is searched."""

    def release(self, name: str, first_row: int = 0, n_rows: int | None = None) -> None:
        """Give the memory of rows that were used back, so that it does not grow with the model.

        Always safe: rows that are looked at again are read from the file again.
        """

    def close(self) -> None:
        """Release the files. Views that were handed out stay valid."""


def checked_shape(name: str, shape: tuple[int, ...], type: str) -> tuple[int, ...]:
    """`shape` without trailing 1s, once name, shape and type are such that llama.cpp can load the tensor.

    Raises GGUFError otherwise. Source: gguf.cpp: gguf_init_from_reader, gguf_add_tensor.
    """
    raw_name = name.encode("utf-8", "surrogateescape")
    if not raw_name or b"\0" in raw_name:
        raise GGUFError(f"{quoted(name)}: a tensor's name is empty or holds a NUL byte; rename the tensor")
    if len(raw_name) > MAX_NAME_BYTES:
        raise GGUFError(
            f"{shown(name)}: {len(raw_name)} bytes long, llama.cpp reads up to {MAX_NAME_BYTES}; rename the tensor"
        )
    if type not in GGML_TYPES:
        raise GGUFError(f"{shown(name)}: {type} is not a ggml type; known are {', '.join(GGML_TYPES)}")
    if len(shape) > MAX_DIMS:
        raise GGUFError(f"{shown(name)}: {len(shape)} dimensions, ggml has at most {MAX_DIMS}")
    if any(not 0 < size <= MAX_BYTES for size in shape):
        raise GGUFError(f"{shown(name)}: shape {list(shape)}; every dimension must be between 1 and 2^63 - 1")
    row = GGML_TYPES[type]
    shape = shape or (1,)  # no dimensions mean one value
    if shape[0] % row.block:
        raise GGUFError(
            f"{shown(name)}: {shape[0]} columns, {type} needs a multiple of {row.block}; shape or type is wrong"
        )
    if math.prod(shape) > MAX_BYTES or math.prod(shape) // row.block * row.bytes > MAX_BYTES:
        raise GGUFError(f"{shown(name)}: shape {list(shape)} holds more than 2^63 - 1 values or bytes")
    kept = len(shape)
    while kept > 1 and shape[kept - 1] == 1:
        kept -= 1
    return shape[:kept]
