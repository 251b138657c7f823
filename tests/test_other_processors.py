"""What LLVM makes of the lane programs for other processors: nothing fused, nothing called, and the same bytes.

Bytes of those that this one can stand in for; `python -m bench.arm64` runs the code for AArch64 in emulation.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from tests.support import data_kinds, oracle

ROOT = Path(__file__).parent.parent
# One of each search; all processors here could fuse.
TYPES = ("Q8_0", "Q5_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ3_S", "IQ1_M", "NVFP4")


@pytest.mark.parametrize(
    ("triple", "processor"),
    [
        ("aarch64-apple-darwin", "apple-m1"),
        ("aarch64-linux-gnu", "neoverse-n1"),
        ("x86_64-linux-gnu", "sapphirerapids"),
    ],
)
def test_two_roundings_stay_two(triple: str, processor: str) -> None:
    command = [sys.executable, "-m", "tests.support.assembly_of", triple, processor, *TYPES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert len(found) > len(TYPES)
    for name, code in found.items():
        assert not code["fused"], name
        assert set(code["called"]) <= {"memset", "_memset", "memcpy", "_memcpy"}, name
        assert code["products"] > 0, name


_QUANTIZE = """
import sys

import numpy as np

from bench import other_processor

rows, importance, folder, name, left_out, *types = sys.argv[1:]
features = {}
if name != "x86-64":
    import llvmlite.binding as llvm

    here = llvm.get_host_cpu_features()
    features = {f: there and not f.startswith(tuple(left_out.split(","))) for f, there in here.items()}
other_processor.pretend(name, features)

from quantmill import qkernels
from quantmill.qkernels.lanes.native import HOST

print(HOST.register)
for type in types:
    blocks = qkernels.quantize(np.load(rows), type, np.load(importance), threads=1)
    np.save(f"{folder}/{type}.npy", blocks)
"""


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="this processor runs no x86-64 code"
)
@pytest.mark.parametrize(
    ("name", "left_out", "register"),
    [("haswell", "avx512,avx10,amx,evex512", 8), ("x86-64", "", 4)],
    ids=["AVX2", "SSE2"],
)
def test_processors_with_shorter_vectors(name: str, left_out: str, register: int, tmp_path: Path) -> None:
    if name == "haswell" and not llvm.get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2")
    rows = np.concatenate([data_kinds.rows(kind, 3, 1024) for kind in data_kinds.HARD_ROWS])
    importance = data_kinds.importance("cubed", 1024)
    paths = [str(tmp_path / name) for name in ("rows.npy", "importance.npy")]
    for path, array in zip(paths, (rows, importance), strict=True):
        np.save(path, array)
    types = ["Q8_0", "Q5_0", "Q4_K", "IQ4_XS", "IQ3_S", "IQ2_XS", "IQ1_S"]
    command = [sys.executable, "-c", _QUANTIZE, *paths, str(tmp_path), name, left_out, *types]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [str(register)]
    for type in types:
        found = np.load(tmp_path / f"{type}.npy")
        assert not oracle.first_difference(found, oracle.quantize(rows, type, importance), type)
