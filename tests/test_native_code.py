"""Machine code kept between processes: right or absent, whoever writes it and whatever happens to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support import oracle

ROWS = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
_QUANTIZE = """
import numpy as np, qkernels, sys
rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
sys.stdout.write(qkernels.quantize(rows, "Q8_0").tobytes().hex())
"""


def start(program: str, cache: Path) -> subprocess.Popen[str]:
    """A process that runs a program with a cache folder of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True
    )


def printed(program: str, cache: Path) -> str:
    with start(program, cache) as process:
        assert process.stdout is not None
        text = process.stdout.read()
    assert process.returncode == 0
    return text


@pytest.fixture
def expected() -> str:
    return oracle.quantize(ROWS, "Q8_0").tobytes().hex()


def test_two_processes_compile_into_one_empty_cache(tmp_path: Path, expected: str) -> None:
    started = [start(_QUANTIZE, tmp_path) for _ in range(2)]
    assert [process.communicate()[0] for process in started] == [expected] * 2
    assert printed(_QUANTIZE, tmp_path) == expected
    assert len(list(tmp_path.rglob("Q8_0-*"))) == 1


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:10], lambda b: b[:500] + b"\0" + b[501:], lambda b: b""],
    ids=["cut", "bit", "empty"],
)
def test_a_damaged_entry_is_compiled_again(
    tmp_path: Path, expected: str, damage: Callable[[bytes], bytes]
) -> None:
    printed(_QUANTIZE, tmp_path)
    (entry,) = tmp_path.rglob("Q8_0-*.o")
    whole = entry.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    entry.write_bytes(damaged)
    assert printed(_QUANTIZE, tmp_path) == expected
    assert entry.read_bytes() == whole


def test_a_cached_type_loads_no_compiler(tmp_path: Path) -> None:
    """The second process reads its code from the cache: it neither reads programs nor builds LLVM IR."""
    program = (
        "import numpy as np, qkernels, sys\n"
        "qkernels.quantize(np.ones((64, 256), np.float32), 'Q4_K')\n"
        "print('quantmill.qkernels.lanes.cpu_compiler' in sys.modules)\n"
    )
    assert [printed(program, tmp_path).strip() for _ in range(2)] == ["True", "False"]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, expected: str) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    assert printed(_QUANTIZE, blocked) == expected


def test_threads_that_compile_at_once(tmp_path: Path) -> None:
    program = """
import numpy as np, qkernels, sys
from concurrent.futures import ThreadPoolExecutor
rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
types = ["Q8_0", "Q4_K", "Q8_0", "Q6_K", "Q4_K", "Q5_0"]
with ThreadPoolExecutor(6) as pool:
    for blocks in pool.map(lambda type: qkernels.quantize(rows, type, threads=2), types):
        print(blocks.tobytes().hex())
"""
    types = ["Q8_0", "Q4_K", "Q8_0", "Q6_K", "Q4_K", "Q5_0"]
    expected = [oracle.quantize(ROWS, type).tobytes().hex() for type in types]
    assert printed(program, tmp_path).split() == expected
