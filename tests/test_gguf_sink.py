"""Writing GGUF: the gguf package's bytes, split as llama.cpp splits, and never a partial file under its name."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from quantmill.gguf_io import (
    GGUFError,
    GGUFSink,
    GGUFValueType,
    Metadata,
    MetaValue,
    OutputTensor,
    lay_out,
    open_source,
)
from tests.support.gguf_builder import I32, STRING, U8, U16, U32, RawTensor, array, gguf, pair

ROWS = np.arange(8, dtype="<f4").reshape(2, 4)
TWO = (OutputTensor("a", (4, 2), "F32"), OutputTensor("b", (4, 2), "F32"))
METADATA = Metadata({"general.architecture": MetaValue(GGUFValueType.STRING, "llama")})


def fill(sink: GGUFSink) -> None:
    for spec in sink.specs():
        sink.write(spec.name, bytes([len(spec.name)]) * spec.n_bytes)


def listed(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("alignment", [None, 32, 64, 4096])
def test_bytes_equal_gguf_package(tmp_path: Path, alignment: int | None) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (3, 210), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "theirs.gguf", "llama")
    items = [("general.architecture", METADATA["general.architecture"])]
    if alignment is not None:
        writer.add_custom_alignment(alignment)
        items.append(("general.alignment", MetaValue(GGUFValueType.UINT32, alignment)))
    writer.add_array("words", ["", "grüße"])
    writer.add_float32("eps", 1e-5)
    writer.add_tensor("vector", ROWS.reshape(-1))
    writer.add_tensor("q", raw, raw_dtype=GGMLQuantizationType.Q6_K)
    writer.add_tensor("last", ROWS[0, :3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    items.append(("words", MetaValue(GGUFValueType.ARRAY, ["", "grüße"], GGUFValueType.STRING)))
    items.append(("eps", MetaValue(GGUFValueType.FLOAT32, 1e-5)))
    tensors = [
        OutputTensor("vector", (8,), "F32"),
        OutputTensor("q", (256, 3), "Q6_K"),
        OutputTensor("last", (3,), "F32"),
    ]
    with GGUFSink(tmp_path / "ours.gguf", Metadata(items), tensors) as sink:
        sink.write("vector", ROWS)
        sink.write("q", raw)
        sink.write("last", ROWS[0, :3])
        sink.commit()
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert sink.file_bytes == (tmp_path / "ours.gguf").stat().st_size
    assert listed(tmp_path) == ["ours.gguf", "theirs.gguf"]


def test_copy_gives_the_same_bytes(tmp_path: Path) -> None:
    pairs = [pair(b"\xff", STRING, b"\x80\x00"), array("w", STRING, [b"\xc3", ""]), pair("n", U32, 5)]
    tensors = [
        RawTensor(b"name \xfe", (256, 3), 12, bytes(range(144)) * 3),
        RawTensor("b", (5,), 0, bytes(20)),
    ]
    (tmp_path / "in.gguf").write_bytes(gguf(pairs, tensors))
    source = open_source(tmp_path / "in.gguf")
    outputs = [OutputTensor(spec.name, spec.shape, spec.type) for spec in source.specs()]
    with GGUFSink(tmp_path / "out.gguf", source.metadata, outputs, inputs=source.paths) as sink:
        for spec in source.specs():
            sink.write(spec.name, source.read(spec.name))
        sink.commit()
    assert (tmp_path / "out.gguf").read_bytes() == gguf(pairs, tensors)


def test_trailing_ones_are_dropped_and_no_tensors_are_a_file(tmp_path: Path) -> None:
    (file,) = lay_out(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (1, 3, 1, 1), "F32")])
    assert file.tensors[0].shape == (1, 3)
    assert file.header == gguf([], [RawTensor("a", (1, 3), 0, bytes(12))])[: len(file.header)]
    assert file.file_bytes == len(file.header) + 32
    (file,) = lay_out(tmp_path / "x.gguf", METADATA, [])
    assert file.header == gguf([pair("general.architecture", STRING, "llama")])
    assert listed(tmp_path) == []


def test_parts_in_any_order_and_from_threads(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(4)]
    data = {
        name: np.random.default_rng(i).integers(0, 256, (64, 16), np.uint8) for i, name in enumerate(names)
    }
    with GGUFSink(tmp_path / "x.gguf", Metadata(), [OutputTensor(n, (4, 64), "F32") for n in names]) as sink:

        def write_rows(name: str) -> None:
            for start in range(0, 64, 8):
                sink.write(name, data[name][start : start + 8])

        threads = [Thread(target=write_rows, args=(name,)) for name in reversed(names)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sink.commit()
    assert (tmp_path / "x.gguf").read_bytes() == gguf(
        [], [RawTensor(name, (4, 64), 0, data[name].tobytes()) for name in names]
    )


def split_keys(number: int, count: int, n_tensors: int, *order: str) -> list[bytes]:
    keys = {
        "no": pair("split.no", U16, number),
        "count": pair("split.count", U16, count),
        "tensors": pair("split.tensors.count", I32, n_tensors),
    }
    return [keys[key] for key in order]


def test_split_by_size_is_that_of_gguf_split(tmp_path: Path) -> None:
    """Expected files written out by hand from what llama-gguf-split --split-max-size 96 does (order of keys too)."""
    sizes = {"a": 8, "b": 9, "large": 40, "c": 8, "d": 8}
    tensors = [OutputTensor(name, (size,), "F32") for name, size in sizes.items()]
    old = METADATA.set("split.count", MetaValue(GGUFValueType.UINT16, 7)).set(
        "k", MetaValue(GGUFValueType.UINT8, 1)
    )
    with GGUFSink(tmp_path / "m.gguf", old, tensors, split_max_bytes=96) as sink:
        fill(sink)
        sink.commit()
    groups = [["a", "b"], ["large"], ["c", "d"]]
    assert listed(tmp_path) == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for number, names in enumerate(groups):
        first = [pair("general.architecture", STRING, "llama"), pair("k", U8, 1)] if number == 0 else []
        expected = gguf(
            first + split_keys(number, 3, 5, "no", "tensors", "count"),
            [RawTensor(n, (sizes[n],), 0, bytes([len(n)]) * 4 * sizes[n]) for n in names],
        )
        assert sink.paths[number].read_bytes() == expected
    assert sink.file_bytes == sum(path.stat().st_size for path in sink.paths)
    assert [spec.name for spec in open_source(sink.paths[0]).specs()] == list(sizes)


def test_split_that_fits_one_file_is_still_named_as_one(tmp_path: Path) -> None:
    (file,) = lay_out(tmp_path / "m.gguf", Metadata(), TWO, split_max_bytes=10**6)
    assert file.path.name == "m-00001-of-00001.gguf"
    assert file.header.startswith(gguf(split_keys(0, 1, 2, "no", "tensors", "count"), n_tensors=2)[:80])


def test_keep_split_is_that_of_llama_quantize(tmp_path: Path) -> None:
    tensors = [
        OutputTensor("a", (8,), "F32", 1),
        OutputTensor("b", (8,), "F32", 3),
        OutputTensor("c", (8,), "F32", 1),
    ]
    with GGUFSink(tmp_path / "m", METADATA, tensors, keep_split=True) as sink:
        fill(sink)
        sink.commit()
    assert listed(tmp_path) == [f"m-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    for number, names in enumerate(["", "ac", "", "b"]):
        first = [pair("general.architecture", STRING, "llama")] if number == 0 else []
        members = [RawTensor(name, (8,), 0, b"\1" * 32) for name in names]
        expected = gguf(first + split_keys(number, 4, 3, "no", "count", "tensors"), members)
        assert sink.paths[number].read_bytes() == expected


def test_one_file_from_a_split_model_has_no_split_keys(tmp_path: Path) -> None:
    shard = METADATA.set("split.count", MetaValue(GGUFValueType.UINT16, 7))
    assert lay_out(tmp_path / "m.gguf", shard, TWO) == lay_out(tmp_path / "m.gguf", METADATA, TWO)


def test_keep_split_of_one_file_sets_no_split_keys(tmp_path: Path) -> None:
    (file,) = lay_out(tmp_path / "m.gguf", METADATA, TWO, keep_split=True)
    assert file.path.name == "m-00001-of-00001.gguf"
    assert b"split." not in file.header


def test_alignment_that_llama_cpp_cannot_use_is_raised(tmp_path: Path) -> None:
    small, usual = (
        METADATA.set("general.alignment", MetaValue(GGUFValueType.UINT32, size)) for size in (8, 32)
    )
    assert lay_out(tmp_path / "x.gguf", small, TWO) == lay_out(tmp_path / "x.gguf", usual, TWO)


def test_alignment_of_later_shards_is_32(tmp_path: Path) -> None:
    metadata = METADATA.set("general.alignment", MetaValue(GGUFValueType.UINT32, 4096))
    tensors = [OutputTensor(f"t{i}", (8,), "F32", i // 2) for i in range(4)]
    with GGUFSink(tmp_path / "m.gguf", metadata, tensors, keep_split=True) as sink:
        fill(sink)
        sink.commit()
    offsets = [spec.offset for spec in open_source(sink.paths[0]).specs()]
    assert offsets[:2] == [4096, 8192]
    assert offsets[3] - offsets[2] == 32


def meta(type: GGUFValueType, value: object, element: GGUFValueType | None = None) -> Metadata:
    return Metadata({"key": MetaValue(type, value, element)})


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (Metadata(), [TWO[0], TWO[0]], "a: declared twice"),
        (Metadata(), [OutputTensor("n" * 64, (4,), "F32")], "64 bytes long, llama.cpp reads up to 63"),
        (Metadata(), [OutputTensor("ü" * 32, (4,), "F32")], "64 bytes long"),
        (Metadata(), [OutputTensor("", (4,), "F32")], "name is empty"),
        (Metadata(), [OutputTensor("a", (4,), "Q9_K")], "a: Q9_K is not a ggml type; known are"),
        (Metadata(), [OutputTensor("a", (4, 2), "Q4_K")], "a: 4 columns, Q4_K needs a multiple of 256"),
        (Metadata(), [OutputTensor("a", (4, 0), "F32")], "every dimension must be between 1"),
        (Metadata(), [OutputTensor("a", (1, 1, 1, 1, 2), "F32")], "a: 5 dimensions"),
        (Metadata(), [OutputTensor("line\nbreak", (0,), "F32")], r"'line\nbreak': shape"),
        (meta(GGUFValueType.UINT8, 256), [], "key: 256 cannot be written as UINT8"),
        (meta(GGUFValueType.UINT32, "x"), [], "key: 'x' cannot be written as UINT32"),
        (meta(GGUFValueType.STRING, 5), [], "key: 5 cannot be written as STRING"),
        (meta(GGUFValueType.FLOAT32, 1e300), [], "cannot be written as FLOAT32"),
        (meta(GGUFValueType.ARRAY, [1]), [], "an array needs the type of its elements"),
        (
            meta(GGUFValueType.ARRAY, list(range(10**5)), GGUFValueType.UINT8),
            [],
            "key: [0, 1, 2, 3, 4, 5, ...] cannot",
        ),
        (Metadata({"general.alignment": MetaValue(GGUFValueType.UINT32, 3)}), [], "must be a power of two"),
    ],
)
def test_what_cannot_be_declared(
    tmp_path: Path, metadata: Metadata, tensors: list[OutputTensor], message: str
) -> None:
    with pytest.raises(GGUFError) as caught:
        GGUFSink(tmp_path / "x.gguf", metadata, tensors)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert listed(tmp_path) == []


def test_impossible_splits(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="at most 0 bytes"):
        lay_out(tmp_path / "x.gguf", Metadata(), TWO, split_max_bytes=0)
    with pytest.raises(GGUFError, match=r"65536 files, split\.count holds at most 65535"):
        lay_out(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (4,), "F32", 65535)], keep_split=True)
    with pytest.raises(GGUFError, match="shard -1"):
        lay_out(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (4,), "F32", -1)], keep_split=True)
    with pytest.raises(ValueError, match="two answers"):
        lay_out(tmp_path / "x.gguf", Metadata(), TWO, keep_split=True, split_max_bytes=5)
