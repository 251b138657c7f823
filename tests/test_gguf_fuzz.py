"""Files nobody meant to write: the reader refuses them with one line, or reads them consistently.

`python -m tests.test_gguf_fuzz 50000` runs that many cases of each kind; what that found is kept by name in
test_gguf_bad_files.py.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from quantmill.gguf_io import GGUFError, GGUFSink, GGUFSource, GGUFValueType, OutputTensor
from tests.support.gguf_builder import (
    BOOL,
    CODES,
    F32,
    STRING,
    U8,
    U32,
    U64,
    RawTensor,
    array,
    gguf,
    pair,
    string,
)

QUICK = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
VALID = gguf(
    [
        pair("general.architecture", STRING, "llama"),
        pair("general.alignment", U32, 32),
        array("tokenizer.ggml.tokens", STRING, ["a", "", "grüße"]),
        array("tokenizer.ggml.scores", F32, [0.0, -1.5]),
        array("flags", BOOL, [True, False]),
        pair("big", U64, 2**63),
        pair("small", U8, 3),
    ],
    [
        RawTensor("token_embd.weight", (256, 2), 12, bytes(range(144)) * 2),
        RawTensor("output_norm.weight", (8,), 0, bytes(32)),
        RawTensor("scale", (), 1, b"ab"),
    ],
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 8, 9, 12, 13, 31, 32, 63, 64, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32]),
    st.sampled_from([2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 8, 2**64 - 1]),
    st.integers(0, 600),
    st.integers(0, 2**64 - 1),
)


SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


def check(data: bytes, path: Path) -> bool:
    """Whether the file was read. Fails on any error but GGUFError and on anything that does not hang together."""
    path.write_bytes(data)
    source, refusal = None, ""
    try:
        source = GGUFSource(path)
    except GGUFError as error:
        refusal = str(error)
    if source is None:
        assert refusal.startswith(f"{path}: ")
        assert refusal.isprintable()
        assert len(refusal) < 500
        return False
    # What was read gives back the bytes it was read from; bools and NaNs are normalised, so those are left out.
    metadata = source.metadata
    if not any(has_bool_or_nan(value.type, value.value) for value in metadata.values()):
        assert data[24 : 24 + metadata.size] == metadata.encode()
    for spec in source.specs():
        assert source.read(spec.name).tobytes() == data[spec.offset : spec.offset + spec.n_bytes]
        source.release(spec.name)
    copied = path.with_name("copy.gguf")
    copied.unlink(
        missing_ok=True
    )  # the case before may have been an importance matrix, which no model replaces
    copy(source, copied)
    again = GGUFSource(copied)
    kept = [*SPLIT_KEYS, "general.alignment"]  # the sink's own keys
    assert again.metadata.without(*kept).encode() == metadata.without(*kept).encode()
    assert [(s.name, s.shape, s.type) for s in again.specs()] == [
        (s.name, s.shape, s.type) for s in source.specs()
    ]
    for spec in again.specs():
        assert again.read(spec.name).tobytes() == source.read(spec.name).tobytes()
    return True


def has_bool_or_nan(type: GGUFValueType, value: object) -> bool:
    return type == GGUFValueType.BOOL or value != value


def copy(source: GGUFSource, path: Path) -> None:
    outputs = [OutputTensor(spec.name, spec.shape, spec.type) for spec in source.specs()]
    with GGUFSink(path, source.metadata, outputs) as sink:
        for spec in source.specs():
            sink.write(spec.name, source.read(spec.name))
        sink.commit()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The small valid file with one to four changes: bytes, numbers, cuts, repeats."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["byte", "u32", "u64", "cut", "drop", "repeat", "insert"]))
        if kind == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "u32":
            data[at : at + 4] = struct.pack("<I", draw(NUMBERS) % 2**32)
        elif kind == "u64":
            data[at : at + 8] = struct.pack("<Q", draw(NUMBERS))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        else:
            data[at:at] = draw(st.binary(max_size=40))
    return bytes(data)


NAMES = st.one_of(st.sampled_from(["a", "b", "general.alignment", "split.count", ""]), st.binary(max_size=70))
# Dimensions, type id, bytes.
SOUND = [
    ((8,), 0, 32),
    ((256, 2), 12, 288),
    ((32, 1, 3), 8, 102),
    ((), 1, 2),
    ((64, 1, 2, 1), 42, 36),
    ((5,), 24, 5),
    ((1, 7), 30, 14),
]


@st.composite
def rarely(draw: st.DrawFn) -> int | None:
    """Mostly None; now and then a number that lies."""
    return draw(NUMBERS) if draw(st.integers(0, 15)) == 7 else None


KINDS = ["scalar"] * 6 + ["array"] * 6 + ["nested", "unknown"]


@st.composite
def pairs(draw: st.DrawFn) -> bytes:
    """One key and a value: any type with bits that fit it, arrays with counts that may lie, unknown types."""
    key = draw(NAMES)
    type_id = draw(st.sampled_from([*CODES, STRING]))
    if type_id == STRING:
        value: st.SearchStrategy[bytes] = st.binary(max_size=20).map(string)
    else:
        size = struct.calcsize(CODES[type_id])
        value = st.one_of(
            NUMBERS.map(lambda n: struct.pack("<Q", n)[:size]), st.binary(min_size=size, max_size=size)
        )
    kind = draw(st.sampled_from(KINDS))
    if kind == "scalar":
        return string(key) + struct.pack("<I", type_id) + draw(value)
    if kind == "unknown":
        return string(key) + struct.pack("<I", draw(NUMBERS) % 2**32) + draw(st.binary(max_size=20))
    items = draw(st.lists(value, max_size=5))
    count = draw(rarely())
    element_id = 9 if kind == "nested" else type_id
    return array(key, element_id, [], len(items) if count is None else count) + b"".join(items)


@st.composite
def tensors(draw: st.DrawFn) -> RawTensor:
    """A tensor entry: nine in ten are sound, the others have any shape, type and size."""
    offset, name = draw(rarely()), draw(st.one_of(st.text("abcdefgh", min_size=1), NAMES))
    if draw(st.integers(0, 9)) != 7:
        dims, type_id, size = draw(st.sampled_from(SOUND))
        return RawTensor(name, dims, type_id, draw(st.binary(min_size=1, max_size=1)) * size, offset)
    return RawTensor(
        name,
        tuple(draw(st.lists(NUMBERS, max_size=6))),
        draw(
            st.one_of(st.sampled_from([0, 1, 2, 8, 12, 24, 30, 39, 41, 42]), NUMBERS.map(lambda n: n % 2**32))
        ),
        draw(st.binary(max_size=64)) * 8,
        offset,
    )


@st.composite
def structured(draw: st.DrawFn) -> bytes:
    """A file in the right order whose parts are drawn one by one."""
    return gguf(
        draw(st.lists(pairs(), max_size=4)),
        draw(st.lists(tensors(), max_size=4)),
        version=draw(st.integers(2, 3)),
        n_pairs=draw(rarely()),
        n_tensors=draw(rarely()),
        alignment=draw(st.sampled_from([32, 32, 32, 64])),
    ) + draw(st.binary(max_size=40))


@QUICK
@given(data=mutated())
def test_mutated_files(tmp_path: Path, data: bytes) -> None:
    check(data, tmp_path / "x.gguf")


@QUICK
@given(data=structured())
def test_structured_files(tmp_path: Path, data: bytes) -> None:
    check(data, tmp_path / "x.gguf")


def test_the_unchanged_file_is_read(tmp_path: Path) -> None:
    assert check(VALID, tmp_path / "x.gguf")


def run(cases: int) -> None:
    """Each generator `cases` times, in batches of 10 000 of their own seeds; prints what was accepted and the time."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.gguf"
        for strategy in (mutated(), structured()):
            start, seen, accepted = time.monotonic(), 0, 0
            for batch in range(0, cases, 10_000):

                def one(data: bytes) -> None:
                    nonlocal seen, accepted
                    seen += 1
                    accepted += check(data, path)

                limited = settings(QUICK, max_examples=min(10_000, cases - batch))
                case: Callable[[], None] = seed(batch)(limited(given(data=strategy)(one)))
                case()
            print(f"{strategy}: {seen} cases, {accepted} read, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run(int(sys.argv[1]))
