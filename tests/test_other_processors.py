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

from quantmill.qkernels import get_type
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.lanes import cpu
from quantmill.qkernels.lanes.native import Processor, host
from tests.support import data_kinds, oracle

ROOT = Path(__file__).parent.parent
# One of each search; all processors here could fuse.
TYPES = ("Q8_0", "Q5_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ3_S", "IQ1_M", "NVFP4")


@pytest.mark.parametrize(
    ("triple", "processor"),
    [
        ("aarch64-apple-darwin", "apple-m1"),
        # The same instructions as apple-m1's, scheduled otherwise.
        pytest.param("aarch64-linux-gnu", "neoverse-n1", marks=pytest.mark.slow),
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


def _processor(name: str, left_out: tuple[str, ...], register: int) -> Processor:
    """What this one is without some of its extensions."""
    here = llvm.get_host_cpu_features()
    features = {feature: there and not feature.startswith(left_out) for feature, there in here.items()}
    listed = ",".join(f"{'+' if there else '-'}{feature}" for feature, there in features.items())
    return Processor(name, listed if left_out else "", register)


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="this processor runs no x86-64 code"
)
@pytest.mark.parametrize(
    ("name", "left_out", "register"),
    [("haswell", ("avx512", "avx10", "amx", "evex512"), 8), ("x86-64", (), 4)],
    ids=["AVX2", "SSE2"],
)
def test_processors_with_shorter_vectors(name: str, left_out: tuple[str, ...], register: int) -> None:
    """Beside this one's own code, in the same process: the processor is a value."""
    if name == "haswell" and not llvm.get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2")
    other = _processor(name, left_out, register)
    rows = np.concatenate([data_kinds.rows(kind, 3, 1024) for kind in data_kinds.HARD_ROWS])
    importance = data_kinds.importance("cubed", 1024)
    for name in ("Q8_0", "Q5_0", "Q4_K", "IQ4_XS", "IQ3_S", "IQ2_XS", "IQ1_S"):
        encoder = encoder_of(name, True)
        given = importance if encoder.uses_importance else None
        found, _ = cpu.encode(get_type(name), encoder, rows, given, 1, other)
        assert not oracle.first_difference(found, oracle.quantize(rows, name, importance), name)
        own, _ = cpu.encode(get_type(name), encoder, rows, given, 1, host())
        assert np.array_equal(found, own), name
