"""What LLVM makes of the lane programs for processors that are not here: nothing fused, nothing called.

`python -m bench.arm64` runs the code for AArch64 in emulation and compares bytes.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    command = [sys.executable, "-m", "tests.assembly_of", triple, processor, *TYPES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert len(found) > len(TYPES)
    for name, code in found.items():
        assert not code["fused"], name
        assert set(code["called"]) <= {"memset", "_memset", "memcpy", "_memcpy"}, name
        assert code["products"] > 0, name
