"""The CPU engine against llama.cpp's own quantizer, byte for byte, on data that is hard for a quantizer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qkernels
from qkernels.encoders import encoder_of, encoders
from qkernels.lanes import cpu
from tests import data_kinds, oracle

CASES = sorted(encoders())


def differing_blocks(ours: np.ndarray, theirs: np.ndarray, type: str) -> int:
    size = qkernels.TYPES[type].bytes
    return int((ours.reshape(-1, size) != theirs.reshape(-1, size)).any(axis=1).sum())


def compare(type: str, weighted: bool, n_rows: int, n_cols: int) -> None:
    """Every kind of rows with every kind of importance."""
    wrong = {}
    for i, kind in enumerate(data_kinds.ROWS):
        rows = data_kinds.rows(kind, n_rows, n_cols, seed=i)
        for importance_kind in data_kinds.IMPORTANCE if weighted else [None]:
            importance = None
            if importance_kind is not None:
                importance = data_kinds.importance(importance_kind, n_cols, seed=i)
            # the engine itself: quantize() refuses rows whose scales overflow, the oracle's chunk function does not
            ours = cpu.encode(qkernels.TYPES[type], encoder_of(type, weighted), rows, importance, 1)
            bad = differing_blocks(ours, oracle.quantize(rows, type, importance), type)
            if bad:
                wrong[kind, importance_kind] = bad
    assert not wrong, f"{type}: differing blocks by kind of rows and importance: {wrong}"


@pytest.mark.parametrize(
    ("type", "weighted"), CASES, ids=lambda v: {True: "importance", False: "plain"}.get(v, v)
)
def test_bytes_are_llama_cpps(type: str, weighted: bool) -> None:
    # 19 rows of 3 super-blocks: tiles that are not full, blocks of several rows in one tile
    compare(type, weighted, 19, 768)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type", "weighted"), CASES, ids=lambda v: {True: "importance", False: "plain"}.get(v, v)
)
def test_bytes_are_llama_cpps_on_2000_blocks_a_kind(type: str, weighted: bool) -> None:
    compare(type, weighted, 256, 2304)


@pytest.mark.parametrize("type", ["Q4_0", "Q5_1", "Q8_0", "Q6_K", "Q2_K"])
def test_threads_and_slabs_do_not_change_bytes(type: str) -> None:
    rows = data_kinds.rows("heavy-tailed", 700, 4096)
    importance = data_kinds.importance("cubed", 4096)
    whole = qkernels.quantize(rows, type, importance, threads=1)
    assert np.array_equal(whole, qkernels.quantize(rows, type, importance, threads=3))
    slabs = [qkernels.quantize(rows[a : a + 99], type, importance, threads=2) for a in range(0, 700, 99)]
    assert np.array_equal(whole, np.concatenate(slabs))


def test_two_processes_compile_into_one_empty_cache(tmp_path: Path) -> None:
    program = (
        "import numpy as np, qkernels, sys\n"
        "rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)\n"
        "sys.stdout.write(qkernels.quantize(rows, 'Q8_0').tobytes().hex())\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    expected = oracle.quantize(rows, "Q8_0").tobytes().hex()
    for process in started:
        assert process.communicate()[0].decode() == expected
    again = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, check=True
    )
    assert again.stdout.decode() == expected


@pytest.mark.parametrize("damage", [lambda b: b[:10], lambda b: b[:500] + b"\0" + b[501:], lambda b: b""])
def test_a_damaged_cache_entry_is_compiled_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    program = (
        "import numpy as np, qkernels, sys\n"
        "rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)\n"
        "sys.stdout.write(qkernels.quantize(rows, 'Q8_0').tobytes().hex())\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    first = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout
    (entry,) = tmp_path.rglob("Q8_0-*.o")
    whole = entry.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    entry.write_bytes(damaged)
    assert subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout == first
    assert entry.read_bytes() == whole


def test_a_cached_type_loads_no_compiler(tmp_path: Path) -> None:
    """The second process reads its code from the cache: it neither reads programs nor builds LLVM IR."""
    program = (
        "import numpy as np, qkernels, sys\n"
        "qkernels.quantize(np.ones((64, 256), np.float32), 'Q4_K')\n"
        "print('qkernels.lanes.cpu_compiler' in sys.modules)\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True) for _ in range(2)]
    assert [run.stdout.decode().strip() for run in runs] == ["True", "False"]


def test_code_is_kept_nowhere_when_the_cache_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    program = (
        "import numpy as np, qkernels, sys\n"
        "sys.stdout.write(qkernels.quantize(np.ones((64, 256), np.float32), 'Q8_0').tobytes().hex())\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(blocked)}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, check=True
    )
    assert done.stdout.decode() == oracle.quantize(np.ones((64, 256), np.float32), "Q8_0").tobytes().hex()


@pytest.mark.parametrize("type", ["Q4_K", "Q4_0"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", [0, 1, 31, 33])
def test_few_rows(type: str, weighted: bool, n_rows: int) -> None:
    rows = data_kinds.rows("heavy-tailed", 64, 512)[:n_rows]
    importance = data_kinds.importance("cubed", 512) if weighted else None
    found = qkernels.quantize(rows, type, importance)
    assert found.shape == (n_rows, qkernels.TYPES[type].row_bytes(512))
    if n_rows:
        assert np.array_equal(found, oracle.quantize(rows, type, importance))
