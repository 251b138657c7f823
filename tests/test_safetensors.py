"""Safetensors reading: equal to the reference library on sound files, one clear line on everything else."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import INDEX_NAME, open_shards, read_header
from tests.support.convert_models import write_safetensors

SOUND = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.arange(5, dtype=np.float16),
    "scalar": np.array(7, dtype=np.int64),
    "empty": np.empty((0, 4), np.float32),
}


def write_raw(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_reference_library_writes(tmp_path):
    save_file(SOUND, tmp_path / "model.safetensors")
    found = open_shards(tmp_path)
    assert list(found) == sorted(SOUND)
    for name, tensor in found.items():
        assert tensor.shape == SOUND[name].shape
        np.testing.assert_array_equal(tensor.array(), SOUND[name])


def test_arrays_are_maps_of_the_file(tmp_path):
    save_file(SOUND, tmp_path / "model.safetensors")
    array = open_shards(tmp_path)["b.weight"].array()
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_bfloat16_and_fp8_travel_as_bits(tmp_path):
    stored = {"x": ("BF16", np.array([[1, 2]], np.uint16)), "y": ("F8_E4M3", np.array([3], np.uint8))}
    write_safetensors(tmp_path / "model.safetensors", stored)
    found = open_shards(tmp_path)
    assert found["x"].array().tolist() == [[1, 2]]
    assert found["y"].array().dtype == np.uint8


BROKEN = {
    "an empty file": (b"", "truncated or not safetensors"),
    "a header longer than the file": (
        struct.pack("<Q", 999) + b"{}",
        "header length 999 in a file of 10 bytes",
    ),
    "a header length of 2^63": (struct.pack("<Q", 2**63) + b"{}", "truncated or not safetensors"),
    "a header that is not JSON": (struct.pack("<Q", 4) + b"{{{{", "the header is not JSON"),
    "a header of brackets only": (struct.pack("<Q", 90000) + b"[" * 90000, "the header is not JSON"),
    "a header that is a list": (struct.pack("<Q", 2) + b"[]", "the header is not a JSON object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_header(case, tmp_path):
    data, message = BROKEN[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=message):
        read_header(path)


BAD_ENTRIES = {
    "an entry that is no object": ({"x": 3}, 0, "x: its header entry is not an object"),
    "an unknown dtype": ({"x": entry("F7")}, 8, "x has dtype 'F7'; known are"),
    "a dtype that is no text": ({"x": entry(["F32"])}, 8, "x has dtype"),
    "a negative dimension": ({"x": entry(shape=[-2])}, 8, "malformed"),
    "a dimension that is no number": ({"x": entry(shape=[True, "2"])}, 8, "malformed"),
    "one offset": ({"x": entry(offsets=[0])}, 8, "malformed"),
    "offsets that do not hold the shape": ({"x": entry(offsets=[0, 4])}, 8, r"4 bytes, F32 \[2\] needs 8"),
    "a shape beyond all memory": ({"x": entry(shape=[2**40, 2**40])}, 8, "needs 4835703278458516698824704"),
    "data behind the end": ({"x": entry(offsets=[8, 16])}, 8, "ends behind the file; it is truncated"),
    "overlapping tensors": (
        {"x": entry(), "y": entry(offsets=[4, 12])},
        12,
        "tensor y overlaps another tensor",
    ),
    "a gap between tensors": ({"x": entry(), "y": entry(offsets=[12, 20])}, 20, "leaves 4 bytes unused"),
    "bytes that belong to nothing": ({"x": entry()}, 9, "its header describes"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_bad_entry(case, tmp_path):
    header, n_bytes, message = BAD_ENTRIES[case]
    path = write_raw(tmp_path / "model.safetensors", header, bytes(n_bytes))
    with pytest.raises(GGUFError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_download(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(SOUND, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(GGUFError, match="truncated"):
        open_shards(tmp_path)


def two_shards(directory, weight_map):
    save_file({"x": np.zeros(2, np.float32)}, directory / "model-1.safetensors")
    save_file({"y": np.zeros(2, np.float32)}, directory / "model-2.safetensors")
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def test_shards_of_an_index(tmp_path):
    two_shards(tmp_path, {"y": "model-2.safetensors", "x": "model-1.safetensors"})
    assert [tensor.path.name for tensor in open_shards(tmp_path).values()] == [
        "model-1.safetensors",
        "model-2.safetensors",
    ]


BAD_INDEXES = {
    "a missing shard": (
        {"x": "model-1.safetensors", "y": "model-3.safetensors"},
        "names shards that are not there: model-3.safetensors",
    ),
    "a missing tensor": (
        {"x": "model-1.safetensors", "y": "model-2.safetensors", "z": "model-2.safetensors"},
        "no shard holds z",
    ),
    "a tensor too many": ({"x": "model-1.safetensors"}, None),
    "an unnamed tensor": (
        {"x": "model-1.safetensors", "q": "model-2.safetensors"},
        "no shard holds q",
    ),
    "a path upwards": (
        {"x": "../model-1.safetensors"},
        "'../model-1.safetensors' of x is not a plain file name",
    ),
    "an absolute path": ({"x": "/etc/passwd"}, "'/etc/passwd' of x is not a plain file name"),
    "a Windows path": ({"x": "..\\model.safetensors"}, "is not a plain file name"),
    "no text": ({"x": 3}, "shard name 3 of x is not a plain file name"),
    "the directory itself": ({"x": "."}, "'.' of x is not a plain file name"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_bad_index(case, tmp_path):
    weight_map, message = BAD_INDEXES[case]
    two_shards(tmp_path, weight_map)
    if message is None:  # a shard that no tensor of the index lies in is simply not read
        assert list(open_shards(tmp_path)) == ["x"]
        return
    with pytest.raises(GGUFError, match=message):
        open_shards(tmp_path)


def test_a_tensor_in_another_shard_is_read_where_it_lies(tmp_path):
    two_shards(tmp_path, {"x": "model-2.safetensors", "y": "model-2.safetensors"})
    warnings = []
    found = open_shards(tmp_path, warnings.append)
    assert {name: tensor.path.name for name, tensor in found.items()} == {
        "x": "model-1.safetensors",
        "y": "model-2.safetensors",
    }
    (warning,) = warnings
    assert "x lies in another shard than the index says" in warning


def test_of_two_tensors_the_one_the_index_names(tmp_path):
    for i, file in enumerate(("model-1.safetensors", "model-2.safetensors", "model-3.safetensors")):
        save_file({"x": np.full(2, i, np.float32), f"y{i}": np.zeros(2, np.float32)}, tmp_path / file)
    weight_map = {f"y{i}": f"model-{i + 1}.safetensors" for i in range(3)}
    for i in range(3):
        index = {"weight_map": weight_map | {"x": f"model-{i + 1}.safetensors"}}
        (tmp_path / INDEX_NAME).write_text(json.dumps(index))
        warnings = []
        assert open_shards(tmp_path, warnings.append)["x"].array()[0] == i
        assert f"read from model-{i + 1}.safetensors, as the index says" in warnings[0]


def test_a_tensor_the_index_does_not_name(tmp_path):
    save_file({"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)}, tmp_path / "model-1.safetensors")
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    with pytest.raises(GGUFError, match="does not name y, which the shards hold"):
        open_shards(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_index_that_is_none(text, tmp_path):
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(GGUFError, match=INDEX_NAME):
        open_shards(tmp_path)


def test_the_same_tensor_twice(tmp_path):
    for file in ("model-1.safetensors", "model-2.safetensors"):
        save_file({"x": np.zeros(2, np.float32)}, tmp_path / file)
    with pytest.raises(GGUFError, match=r"tensor x is already in model-1\.safetensors"):
        open_shards(tmp_path)


def test_pickle_is_refused_with_the_reason(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(GGUFError, match="loading pickle can run any code, so it is refused"):
        open_shards(tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(GGUFError, match=r"no model\*\.safetensors"):
        open_shards(tmp_path)
