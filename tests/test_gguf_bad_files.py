"""Files that are not sound GGUF, and split models that do not belong together: one clear line each."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from quantmill.gguf_io import GGUFError, open_source
from tests.support.gguf_builder import (
    ARRAY,
    F32_ID,
    Q4_K_ID,
    ROW,
    STRING,
    TENSOR,
    U16,
    U32,
    U64,
    RawTensor,
    array,
    gguf,
    pair,
    string,
)

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
    "endless key": (
        gguf([string("k" * 5000) + struct.pack("<IQ", STRING, 9**9)]),
        "k…' needs 387420489 bytes",
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
    "one value of a block type": (
        gguf([], [RawTensor("a", (), 2)]),
        "1 columns, Q4_0 needs a multiple of 32",
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
    assert len(str(caught.value)) < len(str(path)) + 250
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
