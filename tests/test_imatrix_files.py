"""Importance-matrix files against llama-imatrix's own (tests/data/imatrix/README.md), and damaged ones."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from quantmill.gguf_io import GGUFError
from quantmill.imatrix import store
from quantmill.imatrix.compare import difference
from quantmill.imatrix.gguf_format import read_gguf
from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix

DATA = Path(__file__).parent / "data" / "imatrix"


def written(tmp_path: Path, matrix: ImportanceMatrix, format: store.Format) -> bytes:
    path = tmp_path / f"out.{format}"
    store.save(path, matrix, format)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a.gguf"], "a.gguf"),
        (["a.gguf"], "a.dat"),
        (["a.dat"], "a-from-dat.gguf"),
        (["a.gguf", "b.gguf"], "ab.gguf"),
        (["a.dat", "b.gguf"], "a-dat-b.gguf"),
        (["b.gguf", "a.dat"], "b-a.dat"),
    ],
)
def test_merging_and_converting_give_llama_imatrix_s_bytes(
    tmp_path: Path, inputs: list[str], expected: str
) -> None:
    merged = store.merge([store.load(DATA / name) for name in inputs])
    format: store.Format = "dat" if expected.endswith(".dat") else "gguf"
    assert written(tmp_path, merged, format) == (DATA / expected).read_bytes()


def test_the_format_follows_the_content_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "wrong.gguf").write_bytes((DATA / "a.dat").read_bytes())
    assert store.load(tmp_path / "wrong.gguf").legacy


def test_columns_are_what_llama_quantize_reads() -> None:
    gguf = pytest.importorskip("gguf")
    raw = {t.name: np.array(t.data) for t in gguf.GGUFReader(DATA / "a.gguf").tensors}
    matrix = store.load(DATA / "a.gguf")
    name = "blk.0.ffn_up_exps.weight"
    counts = raw[f"{name}.counts"].reshape(-1)
    assert (counts == 0).sum() == 1  # the expert that saw nothing weighs 1.0 everywhere
    columns = matrix.columns(name, 32, 8)
    assert columns is not None
    assert columns.dtype == np.float32
    for e, count in enumerate(counts):
        expected = raw[f"{name}.in_sum2"][e] / np.float32(count) if count else np.ones(32, np.float32)
        assert np.array_equal(columns[e], expected)
    assert matrix.columns("blk.9.ffn_up.weight", 32) is None


def test_legacy_columns_are_values_over_calls() -> None:
    data = (DATA / "a.dat").read_bytes()
    (length,) = struct.unpack_from("<i", data, 4)
    n_calls, n_values = struct.unpack_from("<ii", data, 8 + length)
    values = np.frombuffer(data, "<f4", n_values, 16 + length)
    columns = store.load(DATA / "a.dat").columns(data[8 : 8 + length].decode(), n_values)
    assert columns is not None
    assert np.array_equal(columns[0], values / np.float32(n_calls))


def test_an_entry_of_another_length_is_refused_but_for_the_embedding() -> None:
    matrix = store.load(DATA / "a.gguf")
    with pytest.raises(ImatrixError, match=r"blk\.0\.attn_q\.weight: .* holds 32 values.* 64 x 1"):
        matrix.columns("blk.0.attn_q.weight", 64)
    embedding = ImportanceMatrix({"token_embd.weight": matrix.entries["blk.0.attn_q.weight"]})
    assert embedding.columns("token_embd.weight", 64) is None


def test_filters_go_by_part_of_the_name() -> None:
    matrix = store.load(DATA / "a.gguf")
    kept = matrix.filtered(include=["attn_q", "blk.1."])
    assert set(kept.entries) == {n for n in matrix.entries if "attn_q" in n or "blk.1." in n}
    dropped = matrix.filtered(exclude=["exps"])
    assert set(dropped.entries) == {n for n in matrix.entries if "exps" not in n}
    with pytest.raises(ImatrixError, match="together"):
        matrix.filtered(["a"], ["b"])


def test_sums_of_x_are_kept_and_stock_readers_pass_over_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sums = rng.standard_normal((2, 8)).astype(np.float32)
    entry = Entry(np.square(sums) + 1, np.array([5, 7]), sums)
    store.save(tmp_path / "x.gguf", ImportanceMatrix({"blk.0.ffn_up_exps.weight": entry}, ("t",), 1, 12))
    back = store.load(tmp_path / "x.gguf")
    twice = store.merge([back, back]).entries["blk.0.ffn_up_exps.weight"]
    assert twice.in_sum is not None
    assert np.array_equal(twice.in_sum, sums + sums)
    assert twice.counts.tolist() == [10, 14]


def test_merging_different_models_names_the_tensor() -> None:
    small = ImportanceMatrix({"blk.0.attn_q.weight": Entry(np.ones((1, 8), np.float32), np.array([3]))})
    with pytest.raises(ImatrixError, match=r"blk\.0\.attn_q\.weight: 32 values in one file, 8 in another"):
        store.merge([store.load(DATA / "a.gguf"), small])


def test_difference_of_known_size() -> None:
    a = ImportanceMatrix({"w": Entry(np.array([[3.0, 4.0]], np.float32), np.array([1])), "only": _ones()})
    b = ImportanceMatrix({"w": Entry(np.array([[6.0, 10.0]], np.float32), np.array([2]))})
    found = difference(a, b)
    (row,) = found.tensors
    assert (row.relative, row.counts) == (pytest.approx(0.2), 1.0)  # means 3, 5 against 3, 4
    assert row.cosine == pytest.approx(29 / (5 * 34**0.5))
    assert (found.only_first, found.only_second) == (("only",), ())


def _ones() -> Entry:
    return Entry(np.ones((1, 2), np.float32), np.array([1]))


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


def with_value(data: bytes, value: float) -> bytes:
    """a.gguf with its last sum replaced; its tensors lie in order, counts of 4 bytes padded to 32 at the end."""
    matrix = store.load(DATA / "a.gguf")
    last = list(matrix.entries.values())[-1].in_sum2.reshape(-1)[-1]
    at = data.rindex(struct.pack("<f", last))
    return data[:at] + struct.pack("<f", value) + data[at + 4 :]


GGUF, DAT = (DATA / "a.gguf").read_bytes(), (DATA / "a.dat").read_bytes()
BAD_FILES = {
    "empty": (b"", "empty"),
    "text": (b"Once upon a time there was no importance matrix.\n" * 9, "not an importance matrix"),
    "cut header": (GGUF[:100], ""),
    "cut data": (GGUF[:-400], ""),
    "a key is missing": (
        replaced(GGUF, b"imatrix.chunk_count", b"imatrix.chunk_couns"),
        "chunk_count is missing",
    ),
    "datasets of another type": (
        replaced(
            GGUF, b"datasets" + struct.pack("<IIQ", 9, 8, 1), b"datasets" + struct.pack("<IIQ", 9, 10, 1)
        ),
        "",
    ),
    "sums without counts": (
        replaced(GGUF, b"blk.2.attn_q.weight.counts", b"blk.2.attn_q.weight.kounts"),
        "counts",
    ),
    "not a number": (with_value(GGUF, float("nan")), "nan"),
    "infinite": (with_value(GGUF, float("inf")), "inf"),
    "negative": (with_value(GGUF, -1.0), "-1"),
    "dat cut": (DAT[:-300], "cut short"),
    "dat with a tail": (DAT + b"more", "4 bytes follow"),
    "dat of absurd length": (struct.pack("<iii", 1, 4, 0x7FFFFFFF) + bytes(64), "not an importance matrix"),
    "dat with a negative count": (struct.pack("<i", -3) + DAT[4:], "-3"),
    "dat twice the same name": (struct.pack("<i", 48) + DAT[4:-20] + DAT[4:], ""),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_give_one_clear_line(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises((ImatrixError, GGUFError)) as caught:
        store.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cases", [1500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_fuzzed_files_are_read_or_refused(tmp_path: Path, cases: int) -> None:
    """Flipped, cut, repeated and overwritten bytes: an error of ours or a sound matrix, nothing else."""
    rng = random.Random(20)
    path = tmp_path / "fuzzed"
    refused = 0
    for case in range(cases):
        data = bytearray((GGUF, DAT)[case % 2])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(min(len(data), rng.choice((64, 600, len(data)))))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at : at + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f" * 2))
            elif kind == 2:
                del data[at : at + rng.randrange(1, 40)]
            else:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
        path.write_bytes(data)
        try:
            matrix = store.load(path)
        except (ImatrixError, GGUFError):
            refused += 1
            continue
        for entry in matrix.entries.values():
            assert np.isfinite(entry.means()).all()
    assert cases / 4 < refused < cases


def test_reading_needs_no_file_mapped_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(GGUF)
    matrix = read_gguf(path)
    store.save(path, store.merge([matrix, matrix]))
    assert np.array_equal(
        matrix.entries["blk.0.attn_q.weight"].in_sum2,
        store.load(DATA / "a.gguf").entries["blk.0.attn_q.weight"].in_sum2,
    )


def test_a_full_disk_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises((GGUFError, OSError)):
        store.save(device, store.load(DATA / "a.gguf"), "dat")
    missing = tmp_path / "nowhere" / "out.gguf"
    with pytest.raises((GGUFError, OSError)):
        store.save(missing, store.load(DATA / "a.gguf"))
    assert list(tmp_path.iterdir()) == []
