"""Reading GGUF: equal to the gguf package where the file is sound, one clear line where it is not."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

from gguf_io import GGML_TYPES, GGUFError, GGUFValueType, MetaValue, open_source, type_by_id
from tests.gguf_builder import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    RawTensor,
    array,
    gguf,
    pair,
    string,
)

F32_ID, Q4_K_ID = 0, 12
ROW = np.arange(8, dtype="<f4").tobytes()
TENSOR = RawTensor("a", (8,), F32_ID, ROW)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    def store(data: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return store


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


def test_types_equal_gguf_package() -> None:
    for type, (block, size) in GGML_QUANT_SIZES.items():
        row = GGML_TYPES[type.name]
        assert (row.id, row.block, row.bytes) == (type, block, size)
        assert type_by_id(type) == type.name
    assert set(GGML_TYPES) - {type.name for type in GGMLQuantizationType} <= {"Q2_0"}
    assert type_by_id(4) is None


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


HEAD = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
BAD_FILES = {
    "empty": (b"", "it is empty"),
    "other format": (b"PK\3\4" + bytes(40), "not a GGUF file: it begins with"),
    "shorter than the magic": (b"GG", "not a GGUF file"),
    "only the magic": (b"GGUF", "the version needs 4 bytes, 0 are left"),
    "version 0": (gguf(version=0), "GGUF version 0"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "GGUF version 4; versions 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "cut in the counts": (gguf()[:20], "number of keys needs 8 bytes, 4 are left"),
    "absurd number of keys": (gguf(n_pairs=2**63), "promises 9223372036854775808 keys, there is room for"),
    "absurd number of tensors": (gguf(n_tensors=2**64 - 1), "promises 18446744073709551615 tensors"),
    "one key too many": (gguf([pair("k", U32, 1)], n_pairs=2) + bytes(99), "key 1 is empty"),
    "absurd key length": (
        HEAD + struct.pack("<Q", 2**62) + bytes(64),
        "key 0 needs 4611686018427387904 bytes",
    ),
    "empty key": (gguf([pair("", U32, 1)]), "key 0 is empty"),
    "key twice": (gguf([pair("k", U32, 1), pair("k", U32, 2)]), "the key 'k' occurs twice"),
    "unknown value type": (gguf([string("k") + struct.pack("<I", 13) + bytes(8)]), "unknown value type 13"),
    "absurd string": (
        gguf([string("k") + struct.pack("<IQ", STRING, 2**40)]),
        "value of 'k' needs 1099511627776",
    ),
    "absurd array": (gguf([array("k", U64, [], 2**61)]), "array 'k' of 2305843009213693952 × UINT64 needs"),
    "absurd string array": (gguf([array("k", STRING, [], 2**64 - 1)]), "passes the end at string"),
    "cut string array": (gguf([array("k", STRING, ["x"] * 9)])[:90], "passes the end at string"),
    "array of arrays": (gguf([array("k", ARRAY, [], 1)]), "array of arrays"),
    "unknown element type": (
        gguf([string("k") + struct.pack("<IIQ", ARRAY, 99, 0)]),
        "unknown value type 99",
    ),
    "alignment 0": (gguf([pair("general.alignment", U32, 0)]), "general.alignment is 0"),
    "alignment 48": (gguf([pair("general.alignment", U32, 48)]), "must be a power of two"),
    "alignment u64": (gguf([pair("general.alignment", U64, 32)]), "is of type UINT64"),
    "no name": (gguf([], [RawTensor("", (8,), F32_ID, ROW)]), "name is empty"),
    "NUL in a name": (gguf([], [RawTensor("a\0b", (8,), F32_ID, ROW)]), "NUL byte"),
    "name of 64 bytes": (gguf([], [RawTensor("n" * 64, (8,), F32_ID, ROW)]), "64 bytes long"),
    "tensor twice": (gguf([], [TENSOR, TENSOR]), "the tensor 'a' occurs twice"),
    "five dimensions": (gguf([], [RawTensor("a", (8, 1, 1, 1, 1), F32_ID, ROW)]), "5 dimensions"),
    "many dimensions": (gguf([], [RawTensor("a", (1,) * 1000, F32_ID, ROW)]), "1000 dimensions"),
    "zero columns": (gguf([], [RawTensor("a", (0, 4), F32_ID)]), "every dimension must be between 1"),
    "negative dimension": (
        gguf([], [RawTensor("a", (2**64 - 1,), F32_ID)]),
        "every dimension must be between 1",
    ),
    "product overflows": (gguf([], [RawTensor("a", (2**32, 2**32), F32_ID)]), "more than 2^63 - 1"),
    "bytes overflow": (gguf([], [RawTensor("a", (2**62,), 28)]), "more than 2^63 - 1"),
    "removed type": (gguf([], [RawTensor("a", (32,), 4, ROW)]), "unknown ggml type 4"),
    "unknown type": (gguf([], [RawTensor("a", (32,), 2**31, ROW)]), "unknown ggml type 2147483648"),
    "part of a block": (
        gguf([], [RawTensor("a", (255,), Q4_K_ID, ROW)]),
        "255 columns, Q4_K needs a multiple of 256",
    ),
    "misaligned": (
        gguf([], [RawTensor("a", (8,), F32_ID, ROW, offset=8)]) + bytes(64),
        "not a multiple of the al",
    ),
    "offset outside": (gguf([], [RawTensor("a", (8,), F32_ID, ROW, offset=2**40)]), "'a' ends at byte"),
    "offset wraps": (gguf([], [RawTensor("a", (8,), F32_ID, ROW, offset=2**64 - 32)]), "'a' ends at byte"),
    "data cut": (gguf([], [RawTensor("a", (8, 9), F32_ID, ROW * 9)])[:-1], "'a' ends at byte"),
    "overlap": (
        gguf([], [RawTensor("a", (16,), F32_ID, ROW * 2), RawTensor("b", (8,), F32_ID, ROW, offset=32)]),
        "'a' and 'b' overlap",
    ),
    "32 where the key says 64": (
        gguf([pair("general.alignment", U32, 64)], [TENSOR, RawTensor("b", (8,), F32_ID, ROW)]) + bytes(64),
        "not a multiple of the alignment 64",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(stored: Callable[..., Path], case: str) -> None:
    data, message = BAD_FILES[case]
    path = stored(data)
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError) as caught:
            open_source(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert peak < 2**20


def test_every_truncation_of_a_small_file_is_refused(stored: Callable[..., Path]) -> None:
    whole = gguf(
        [pair("k", STRING, "value"), array("w", STRING, ["a", "b"])], [TENSOR, RawTensor("b", (8,), 0, ROW)]
    )
    for size in range(len(whole)):
        with pytest.raises(GGUFError):
            open_source(stored(whole[:size]))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "nothing.gguf")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.gguf")
        with pytest.raises(GGUFError, match="not a regular file"):
            open_source(tmp_path / "pipe.gguf")


def shard(number: int, count: int, names: str, **changes: int) -> bytes:
    keys = {"split.no": number, "split.count": count} | changes
    pairs = [pair(key, U16, value) for key, value in keys.items()]
    return gguf(pairs, [RawTensor(name, (8,), F32_ID, ROW) for name in names])


def test_split_model(stored: Callable[..., Path]) -> None:
    stored(shard(1, 3, "cd"), "m-00002-of-00003.gguf")
    stored(shard(2, 3, ""), "m-00003-of-00003.gguf")
    first = stored(shard(0, 3, "ab") + b"", "m-00001-of-00003.gguf")
    source = open_source(first)
    assert [(spec.name, spec.shard) for spec in source.specs()] == [("a", 0), ("b", 0), ("c", 1), ("d", 1)]
    assert [path.name for path in source.paths] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert source.read("d").tobytes() == ROW


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (shard(0, 2, "a"), None, "1 of 2 shards are missing, the first is m-00002-of-00002.gguf"),
        (shard(0, 2, "a"), shard(0, 2, "b"), "split.no, split.count are (0, 2), expected (1, 2)"),
        (shard(0, 2, "a"), shard(1, 3, "b"), "are (1, 3), expected (1, 2)"),
        (shard(0, 2, "a"), gguf(), "are (None, None), expected (1, 2)"),
        (shard(0, 2, "a"), shard(1, 2, "a"), "the tensor 'a' is in an earlier shard too"),
        (
            shard(0, 2, "a", **{"split.tensors.count": 3}),
            shard(1, 2, "b"),
            "is 3, the 2 shards hold 2 tensors",
        ),
        (shard(1, 2, "a"), shard(1, 2, "b"), "shard 2 of 2, so its name must end in -00002-of-00002.gguf"),
        (shard(0, 3, "a"), shard(1, 2, "b"), "its name must end in -00001-of-00003.gguf"),
        (gguf([pair("split.count", U64, 2**40)]), None, "split.count is 1099511627776"),
        (gguf([pair("split.count", STRING, "2")]), None, "split.count is '2'"),
    ],
)
def test_bad_splits(stored: Callable[..., Path], first: bytes, second: bytes | None, message: str) -> None:
    path = stored(first, "m-00001-of-00002.gguf")
    if second is not None:
        stored(second, "m-00002-of-00002.gguf")
    with pytest.raises(GGUFError) as caught:
        open_source(path)
    assert message in str(caught.value)


def test_a_later_shard_names_the_first(stored: Callable[..., Path]) -> None:
    with pytest.raises(GGUFError, match=r"shard 2 of 2; open the first, m-00001-of-00002\.gguf"):
        open_source(stored(shard(1, 2, "a"), "m-00002-of-00002.gguf"))
