"""A Hugging Face directory as a source of GGUF tensors, cut out of the shards row by row when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFWriter

from quantmill.gguf_io.convert import general, keys, nextn, pooling, rope
from quantmill.gguf_io.convert.config import configuration, negative_ids
from quantmill.gguf_io.convert.families import family_of
from quantmill.gguf_io.convert.names import tensor_table
from quantmill.gguf_io.convert.output_types import (
    ALWAYS_F32,
    KEPT,
    file_type,
    keeps_type,
    output_type,
    recorded,
    write_precision,
)
from quantmill.gguf_io.convert.reading import cut_rows
from quantmill.gguf_io.convert.storage.fp8 import FP8
from quantmill.gguf_io.convert.storage.reader import Reader
from quantmill.gguf_io.convert.stored import check, readers, whole_numbers
from quantmill.gguf_io.convert.tokenizer_json import TokenizerFiles
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.safetensors import open_shards
from quantmill.gguf_io.tensors import TensorSpec, checked_shape
from quantmill.gguf_io.types import GGML_TYPES


class Checkpoint:
    """A TensorSource over safetensors. specs: GGUF names, shapes and the types the values have in the checkpoint.

    Norms, biases, routers and RoPE tables are F32, as llama.cpp's converter makes them; the rest keeps F32, F16 or
    BF16. What is packed has the type of ggml whose blocks hold its values without loss (MXFP4, NVFP4, Q4_0, Q8_0), else
    F32; `fetch` then gives it packed all the same.
    """

    def __init__(self, directory: Path, outtype: str, later: str = nextn.WITH) -> None:
        warnings: list[str] = []
        raw = configuration(directory)
        family = family_of(raw)
        stored = open_shards(directory, warnings.append)
        config = family.completed(
            {**raw, **whole_numbers(family.numbers, stored), **family.of_stored(stored)}
        )
        family.check(config)
        config["tokenizer_size"] = config["vocab_size"]
        config["pooling"] = pooling.read(directory)
        warnings += negative_ids(directory, config)
        self._readers = readers(config, stored, warnings.append)
        warnings += nextn.take(directory, family.nextn, config, tuple(self._readers), later)
        kept = frozenset(name for name, reader in self._readers.items() if _is_kept(reader))
        self._table = tensor_table(
            family, config, {name: reader.shape for name, reader in self._readers.items()}, kept
        )
        check(directory, self._table, self._readers)
        self.outtype = output_type(outtype, stored)
        self._as_stored = family.as_stored
        self._in_f32 = family.in_f32(config)
        tables = family.tables(config)
        self._made: dict[str, np.ndarray] = dict(tables)
        self._specs = dict(self._described(tables, family.made(config)))
        config["file_type"] = file_type({spec.type for spec in self._specs.values()}, self.outtype)
        writer = GGUFWriter(None, family.name)
        for row in family.table_keys:
            keys.add(writer, family.name, row.write(config))
        shapes = [(name, spec.shape[::-1]) for name, spec in self._specs.items()]
        general.write(writer, directory, general.parameter_counts(shapes), warnings.append)
        for row in family.keys:
            keys.add(writer, family.name, row.write(config))
        warnings += rope.ignored(config, tables, _written(writer, f"{family.name}.rope.scaling.type"))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_precision(writer, config, self._table, self._specs)
        family.vocabulary(writer, TokenizerFiles(directory, warnings.append), config)
        self._metadata = recorded(writer)
        self._paths = tuple(dict.fromkeys(tensor.path for tensor in stored.values()))
        self._warnings = tuple(warnings)

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._paths

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._warnings

    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._specs.values())

    def kept(self) -> dict[str, str]:
        """Name → type of the tensors that llama.cpp's converter takes over as blocks."""
        return {name: spec.type for name, spec in self._specs.items() if spec.type in KEPT}

    def in_f32(self) -> tuple[str, ...]:
        """Matrices that llama.cpp's converter leaves in F32; some of them its quantizer would turn into other types."""
        return tuple(name for name in self._specs if name.endswith(ALWAYS_F32) or name in self._in_f32)

    def as_stored(self) -> dict[str, str]:
        """Name → type of the matrices that llama.cpp's converter leaves in the type they have, whatever is asked for;
        FP8 becomes Q8_0."""
        if not self._as_stored:
            return {}
        types = {spec.name: spec.type for spec in self.specs() if len(spec.shape) > 1}
        return {name: type for name, type in types.items() if type in ("F32", "BF16")} | dict.fromkeys(
            self.of_fp8(), "Q8_0"
        )

    def of_fp8(self) -> tuple[str, ...]:
        """The matrices whose values were FP8."""
        return tuple(
            name
            for name, spec in self._specs.items()
            if len(spec.shape) > 1 and any(isinstance(reader, FP8) for reader in self._sources(name))
        )

    def read(self, name: str, first_row: int = 0, n_rows: int | None = None) -> np.ndarray:
        """uint8 [n_rows, row_bytes]: a view of the file where nothing is changed on the way."""
        spec = self._spec_of(name)
        n_rows = spec.wanted_rows(first_row, n_rows)
        if not n_rows:
            return np.empty((0, spec.row_bytes), np.uint8)
        if name in self._made:
            values = self._made[name]
        else:
            values = cut_rows(
                self._table.views[name], self._readers, spec.type, first_row, first_row + n_rows
            )
        return np.ascontiguousarray(values).view(np.uint8).reshape(n_rows, spec.row_bytes)

    def fetch(self, name: str, first_row: int = 0, n_rows: int | None = None) -> tuple[np.ndarray, str]:
        """As `read`, but F32 that is made of packed values comes as their blocks, with the type of these."""
        spec = self._spec_of(name)
        forms = self._forms(name) if spec.type == "F32" and self._keeps_type(name) else ()
        n_rows = spec.wanted_rows(first_row, n_rows)
        if not forms or not n_rows:
            return self.read(name, first_row, n_rows), spec.type
        blocks = cut_rows(self._table.views[name], self._readers, forms[0], first_row, first_row + n_rows)
        return blocks, forms[0]

    def release(self, name: str, first_row: int = 0, n_rows: int | None = None) -> None:
        """Nothing to do: every read maps its tensor anew, and the map goes with the last view."""

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _spec_of(self, name: str) -> TensorSpec:
        spec = self._specs.get(name)
        if spec is None:
            raise GGUFError(f"there is no tensor {name!r}")
        return spec

    def _described(
        self, tables: rope.Tables, made: Mapping[str, rope.Tables]
    ) -> Iterator[tuple[str, TensorSpec]]:
        """All tensors in the order of llama.cpp's converter: whole numbers, kept blocks with their factors, then RoPE
        tables. made: what stands before a tensor without being in the checkpoint."""
        specs = {name: self._spec(name, view.stored_shape) for name, view in self._table.views.items()}
        yield from ((name, spec) for name, spec in specs.items() if spec.type == "I32")
        behind = {name: spec for name, spec in specs.items() if spec.type not in (*KEPT, "I32")}
        for name, spec in specs.items():
            if spec.type in KEPT:
                yield name, spec
                factors = self._factors(name) if spec.type == "NVFP4" else {}
                self._made |= factors
                yield from ((other, self._spec(other, values.shape)) for other, values in factors.items())
        yield from ((name, self._spec(name, table.shape)) for name, table in tables.items())
        for name, spec in behind.items():
            values = made.get(name, {})
            self._made |= values
            yield from ((other, self._spec(other, found.shape)) for other, found in values.items())
            yield name, spec

    def _factors(self, name: str) -> dict[str, np.ndarray]:
        """Tensors beside the blocks of a tensor: a factor for each expert; where all are 1 there is none."""
        found = {}
        for key in ("scale", "input_scale"):
            values = np.array([reader.factors[key] for reader in self._sources(name)], np.float32)
            near = np.allclose(values, 1, atol=1e-6) if len(values) > 1 else abs(values[0] - 1) < 1e-6
            if not near:
                found[name.removesuffix("weight") + key] = values
        return found

    def _sources(self, name: str) -> list[Reader]:
        view = self._table.views.get(name)
        return [self._readers[source] for source in view.sources] if view else []

    def _forms(self, name: str) -> tuple[str, ...]:
        """The blocks in which rows of a tensor can be had: those that all of its sources have."""
        view = self._table.views.get(name)
        if view is None or view.vector or not view.in_whole_rows:
            return ()
        first, *others = (reader.forms for reader in self._sources(name))
        return tuple(form for form in first if all(form in forms for forms in others))

    def _spec(self, name: str, shape: tuple[int, ...]) -> TensorSpec:
        kind = "F32"
        if name in self._table.views and len(shape) > 1 and self._keeps_type(name):
            multiplied = self._table.views[name].factors
            plain = {"F32"} if multiplied else {reader.plain for reader in self._sources(name)}
            kind = plain.pop() if len(plain) == 1 else "F32"  # experts that differ meet in F32
            kind = next((form for form in self._forms(name) if form in GGML_TYPES), kind)
            kind = "I32" if self._table.views[name].indices else kind
        packed = kind not in ("F32", "F16", "BF16", "I32")
        return TensorSpec(name, checked_shape(name, shape[::-1], kind), kind, 0, 0, original=packed)

    def _keeps_type(self, name: str) -> bool:
        return keeps_type(name, self._as_stored) and name not in self._in_f32


def open_checkpoint(path: str | PathLike[str], outtype: str = "auto", later: str = nextn.WITH) -> Checkpoint:
    """Open a Hugging Face model directory as a source of GGUF tensors and metadata; reads no weights.

    outtype: F32, F16, BF16, Q8_0 or auto (what most of the checkpoint is in): general.file_type says it; the values
    themselves come in their own types. later: whether layers that predict further tokens are there: "with", "without",
    or "only" they. Raises GGUFError naming file, tensor or key and the way out.
    """
    return Checkpoint(Path(path), outtype.upper(), later)


def is_packed(directory: Path) -> bool:
    """Whether a model's configuration says that its weights are quantized. Raises GGUFError when it cannot be read."""
    raw = configuration(directory)
    parts = (raw, raw.get("text_config"))
    return any(isinstance(part, Mapping) and bool(part.get("quantization_config")) for part in parts)


def _is_kept(reader: Reader) -> bool:
    return any(form in KEPT for form in reader.forms)


def _written(writer: GGUFWriter, key: str) -> Any:
    found = writer.kv_data[0].get(key)
    return None if found is None else found.value
