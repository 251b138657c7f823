"""How fast the Triton kernels can be at most: python -m bench.gpu_model [TYPE …]. ESTIMATES, nothing is run.

Every kernel is compiled for sm_90 and one thread is followed through its machine code, so instructions are counted,
not guessed. Two limits are printed for each GPU: issuing the instructions (four a clock and multiprocessor, and the
float and integer units' own rates), and moving every array of every phase once through memory. What a GPU does on top
(latency, launches, waiting threads) is not in the model; the true speed is below both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass

from bench.compile_ahead import TARGETS, Kernel, compile_for, kernels_of, run_tool
from bench.kernel_work import bytes_moved, longest_walk
from bench.sass import Thread
from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.types import TYPES

# Loops whose count the machine code does not show: the sweeps of the searches for scales of scales.
_SWEEPS = 5


@dataclass(frozen=True)
class Gpu:
    """Multiprocessors, their clock under load, float and integer instructions a clock and multiprocessor, memory."""

    name: str
    processors: int
    ghz: float
    floats: int
    integers: int
    gigabytes_per_second: float


GPUS = (
    Gpu("A100", 108, 1.41, 64, 64, 1555),
    Gpu("H100", 132, 1.70, 128, 64, 3350),
    Gpu("RTX 4090", 128, 2.52, 128, 64, 1008),
)
_ISSUED = 128  # instructions of threads a clock and multiprocessor: four schedulers, warps of 32


@dataclass(frozen=True)
class Estimate:
    """Per weight: instructions (all, on floats, on integers), bytes moved. The bounds are gigaweights a second."""

    type: str
    weighted: bool
    instructions: float
    floats: float
    integers: float
    bytes: float
    issue_bound: dict[str, float]
    bandwidth_bound: dict[str, float]


def _trips(kernel: Kernel, type: str) -> float:
    """How often loops of unknown length go round: sweeps, or a walk along neighbours to a warp's longest list.

    The walk is compiled with four neighbours a round where a group has four weights, else with one.
    """
    if "near" not in [name.removeprefix("p_") for name in kernel.signature]:
        return _SWEEPS
    return max(1.0, longest_walk(type) / (4 if codebook(type).dim == 4 else 1))


def _kind(opcode: str) -> str:
    name = opcode.split(".")[0]
    if name.startswith(("FADD", "FMUL", "FFMA", "FSEL", "FSETP", "FMNMX", "FCHK")):
        return "float"
    if name.startswith(("LD", "ST", "ULD", "BRA", "BSSY", "BSYNC", "EXIT", "CALL", "MUFU", "I2F", "F2", "U")):
        return "other"
    return "integer"


def estimate(type: str, weighted: bool, encoder: Encoder, known: dict[object, Counter[str]]) -> Estimate:
    """`known`: counts of kernels already followed, shared between types."""
    row = TYPES[type]
    counts: Counter[str] = Counter()
    for kernel in kernels_of(encoder, row.block):
        trips = _trips(kernel, type)
        key = (kernel.function, trips)
        if key not in known:
            done = compile_for(kernel, TARGETS["sm_90"])
            if done.cubin is None:
                raise RuntimeError("no machine code")
            known[key] = Thread(run_tool("nvdisasm", done.cubin, "-c"), trips).run()
        for opcode, n in known[key].items():
            counts[_kind(opcode)] += n * kernel.lanes / row.block  # type: ignore[assignment]
    total, moved = sum(counts.values()), bytes_moved(encoder, row.block, row.bytes)
    issue, bandwidth = {}, {}
    for gpu in GPUS:
        clocks = max(total / _ISSUED, counts["float"] / gpu.floats, counts["integer"] / gpu.integers)
        issue[gpu.name] = gpu.processors * gpu.ghz / clocks
        bandwidth[gpu.name] = gpu.gigabytes_per_second / moved
    return Estimate(type, weighted, total, counts["float"], counts["integer"], moved, issue, bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE", help="all types by default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    known: dict[object, Counter[str]] = {}
    chosen = [name.upper() for name in arguments.types]
    results = [
        estimate(type, weighted, encoder, known)
        for (type, weighted), encoder in encoders().items()
        if not chosen or type.upper() in chosen
    ]
    if arguments.json:
        json.dump([asdict(result) for result in results], sys.stdout, indent=1)
        return
    print("ESTIMATED upper limits in gigaweights a second: issuing instructions / moving memory\n")
    names = " | ".join(gpu.name for gpu in GPUS)
    print(f"| type | importance | instructions a weight | bytes a weight | {names} |")
    print("|---|---|--:|--:|" + "--:|" * len(GPUS))
    for r in results:
        limits = " | ".join(f"{r.issue_bound[g.name]:.1f} / {r.bandwidth_bound[g.name]:.1f}" for g in GPUS)
        print(
            f"| {r.type} | {'yes' if r.weighted else 'no'} | {r.instructions:.0f} | {r.bytes:.0f} | {limits} |"
        )


if __name__ == "__main__":
    main()
