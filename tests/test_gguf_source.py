"""Reading GGUF: equal to the gguf package where the file is sound, one clear line where it is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, constants
from gguf.constants import GGML_QUANT_SIZES

from quantmill.gguf_io import GGML_TYPES, GGUFError, GGUFValueType, MetaValue, open_source, type_by_id
from quantmill.qkernels.types import TYPES
from tests.support.gguf_builder import (
    BOOL,
    F32,
    F32_ID,
    F64,
    I64,
    Q4_K_ID,
    ROW,
    STRING,
    TENSOR,
    U8,
    U32,
    RawTensor,
    array,
    gguf,
    pair,
)


def written_by_gguf_package(path: Path, alignment: int | None = None) -> None:
    """One key of each type and one tensor of each ggml type, random blocks in it."""
    writer = GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"a.{name}", 7)
    writer.add_float32("a.float32", 0.1)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "grüße")
    writer.add_array("a.strings", ["", "ä", "token"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    writer.add_array("a.bools", [True, False])
    random = np.random.default_rng(1)
    for type, (_, size) in GGML_QUANT_SIZES.items():
        raw = random.integers(0, 256, (2, 3, 2 * size), dtype=np.uint8)
        writer.add_tensor(f"t.{type.name}", raw, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_equals_gguf_package(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "all.gguf"
    written_by_gguf_package(path, alignment)
    reader, source = GGUFReader(path), open_source(path)

    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(source.metadata) == list(fields)
    for key, field in fields.items():
        found = source.metadata[key]
        assert found.type == field.types[0]
        expected = field.contents()
        assert list(found.value) == expected if isinstance(expected, list) else found.value == expected, key

    assert [spec.name for spec in source.specs()] == [tensor.name for tensor in reader.tensors]
    for spec, tensor in zip(source.specs(), reader.tensors, strict=True):
        assert spec.shape == tuple(tensor.shape)
        assert spec.type == tensor.tensor_type.name
        assert (spec.offset, spec.n_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert source.read(spec.name).tobytes() == tensor.data.tobytes()


def test_types_of_values_equal_gguf_package() -> None:
    assert {type.name: int(type) for type in GGUFValueType} == {
        type.name: int(type) for type in constants.GGUFValueType
    }


def test_types_equal_gguf_package() -> None:
    for type, (block, size) in GGML_QUANT_SIZES.items():
        row = GGML_TYPES[type.name]
        assert (row.id, row.block, row.bytes) == (type, block, size)
        assert type_by_id(type) == type.name
    assert set(GGML_TYPES) - {type.name for type in GGMLQuantizationType} <= {"Q2_0"}
    assert type_by_id(4) is None


def test_types_equal_those_of_the_kernels() -> None:
    assert {name: (type.id, type.block, type.bytes) for name, type in TYPES.items()} == {
        name: (GGML_TYPES[name].id, GGML_TYPES[name].block, GGML_TYPES[name].bytes) for name in TYPES
    }


def test_version_2_reads_as_version_3(stored: Callable[..., Path]) -> None:
    new, old = (
        open_source(stored(gguf([pair("k", U32, 1)], [TENSOR], version=v), f"{v}.gguf")) for v in (3, 2)
    )
    assert old.specs() == new.specs()
    assert dict(old.metadata) == dict(new.metadata)
    assert old.read("a").tobytes() == ROW


def test_metadata_gives_back_its_bytes(stored: Callable[..., Path]) -> None:
    pairs = [
        pair("u8", U8, 255),
        pair(b"\xff\xfe key", STRING, b"\x80 not UTF-8 \x00 with NUL"),
        array("words", STRING, [b"", b"\xc3", "ä"]),
        array("empty", STRING, []),
        array("doubles", F64, [0.1, float("inf")]),
        array("flags", BOOL, [True, False]),
        pair("i64", I64, -(2**63)),
        pair("pi", F32, 3.14),
    ]
    metadata = open_source(stored(gguf(pairs))).metadata
    assert metadata.encode() == b"".join(pairs)
    assert metadata.size == len(b"".join(pairs))
    assert metadata.value("words")[1].encode("utf-8", "surrogateescape") == b"\xc3"
    assert metadata.value("flags") == [True, False]
    assert metadata.value("nothing", 5) == 5


def test_metadata_changes_give_new_metadata(stored: Callable[..., Path]) -> None:
    metadata = open_source(stored(gguf([pair("a", U32, 1), pair("b", U32, 2)]))).metadata
    three = MetaValue(GGUFValueType.UINT32, 3)
    assert list(metadata.set("a", three).items()) == [("b", metadata["b"]), ("a", three)]
    assert list(metadata.replace("a", three).items()) == [("a", three), ("b", metadata["b"])]
    assert list(metadata.without("a", "x")) == ["b"]
    assert list(metadata) == ["a", "b"]
    with pytest.raises(KeyError):
        metadata.replace("x", three)


@pytest.mark.parametrize(
    ("first_row", "n_rows"), [(0, None), (0, 6), (2, 3), (5, 1), (5, None), (6, 0), (3, None)]
)
def test_row_ranges_are_views(stored: Callable[..., Path], first_row: int, n_rows: int | None) -> None:
    raw = np.random.default_rng(2).integers(0, 256, (6, 144), dtype=np.uint8)
    path = stored(gguf([], [RawTensor("q", (256, 3, 2, 1), Q4_K_ID, raw.tobytes())]))
    source = open_source(path)
    (spec,) = source.specs()
    assert (spec.shape, spec.n_cols, spec.n_rows, spec.row_bytes) == ((256, 3, 2), 256, 6, 144)
    rows = source.read("q", first_row, n_rows)
    end = 6 if n_rows is None else first_row + n_rows
    assert rows.shape == (end - first_row, 144)
    assert rows.tobytes() == raw[first_row:end].tobytes()
    assert not rows.flags.writeable
    if len(rows):
        assert np.shares_memory(rows, source.read("q"))


@pytest.mark.parametrize(("first_row", "n_rows"), [(-1, 1), (0, 7), (6, 1), (7, None), (0, -1)])
def test_rows_that_do_not_exist(stored: Callable[..., Path], first_row: int, n_rows: int | None) -> None:
    source = open_source(stored(gguf([], [RawTensor("a", (2, 6), F32_ID, bytes(48))])))
    with pytest.raises(GGUFError, match=r"a: rows .* of 6"):
        source.read("a", first_row, n_rows)
    with pytest.raises(GGUFError, match="no tensor 'b'"):
        source.read("b")


def test_views_survive_close(stored: Callable[..., Path]) -> None:
    source = open_source(stored(gguf([], [TENSOR])))
    rows = source.read("a")
    source.close()
    source.close()
    assert rows.tobytes() == ROW
    with pytest.raises(GGUFError, match="no tensor"):
        source.read("a")


def resident_file_pages() -> int:
    """Bytes of mapped files that are in this process's memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident size is read from Linux's /proc")
def test_release_bounds_the_resident_size(tmp_path: Path) -> None:
    path, mib, count = tmp_path / "large.gguf", 2**20, 8
    tensors = [RawTensor(f"t{i}", (mib, 8), 24, offset=i * 8 * mib) for i in range(count)]
    path.write_bytes(gguf([], tensors))
    os.truncate(path, path.stat().st_size + count * 8 * mib)
    source = open_source(path)
    before, peak = resident_file_pages(), 0
    for spec in source.specs():
        rows = source.read(spec.name)
        assert not rows.any()
        peak = max(peak, resident_file_pages())
        source.release(spec.name)
        assert not rows[:, ::4096].any()  # still readable
        source.release(spec.name)
    assert 4 * mib < peak - before < 2 * 8 * mib


def test_a_large_vocabulary_opens_fast(stored: Callable[..., Path]) -> None:
    tokens = [f"token {i}" for i in range(150_000)]
    pairs = [array(f"tokenizer.ggml.{key}", STRING, tokens) for key in ("tokens", "merges")]
    path = stored(gguf([*pairs, array("tokenizer.ggml.token_type", U32, range(150_000))], [TENSOR]))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        source = open_source(path)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3
    assert source.metadata.value("tokenizer.ggml.tokens") == tokens


def test_gaps_and_order_do_not_matter_to_the_reader(stored: Callable[..., Path]) -> None:
    late = RawTensor("late", (8,), F32_ID, ROW, offset=96)
    early = RawTensor("early", (8,), F32_ID, ROW, offset=0)
    source = open_source(stored(gguf([], [late, early]) + bytes(64)))
    assert [spec.name for spec in source.specs()] == ["late", "early"]
    assert source.specs()[0].offset - source.specs()[1].offset == 96


def test_padding_after_the_last_tensor_may_be_missing(stored: Callable[..., Path]) -> None:
    data = gguf([], [RawTensor("a", (1,), F32_ID, b"abcd")])
    assert open_source(stored(data[:-28])).read("a").tobytes() == b"abcd"


def test_no_dimensions_mean_one_value(stored: Callable[..., Path]) -> None:
    (spec,) = open_source(stored(gguf([], [RawTensor("scale", (), F32_ID, b"abcd")]))).specs()
    assert (spec.shape, spec.n_rows, spec.n_bytes) == ((1,), 1, 4)
