"""How fast the Metal kernels can be at most: python -m bench.metal_model [TYPE …]. ESTIMATES, nothing is run.

Operations are counted in the kernels' own text, loops by their bounds, and two limits are printed for each GPU:
doing the operations, one a clock and lane (128 lanes a core), and moving every array of every phase once through
memory. What a GPU does on top (latency, misses of a cache, waiting threads, launches) is not in the model; the true
speed is below both. Clocks are assumed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from bench.kernel_work import bytes_moved, longest_walk
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.lanes.metal_source import encoder_source, phase_name
from quantmill.qkernels.types import TYPES

_LANES = 128


@dataclass(frozen=True)
class Gpu:
    name: str
    cores: int
    ghz: float
    gigabytes_per_second: float


GPUS = (Gpu("M1", 8, 1.28, 68), Gpu("M3 Max", 40, 1.4, 400), Gpu("M4", 10, 1.5, 120))

# What a function takes, in operations; divisions and roots are a reciprocal and the steps that make it exact.
_FUNCTIONS = {
    "nearest_int": 3,
    "trunc_to_int": 4,
    "float_to_half": 20,
    "half_to_float": 10,
    "divide": 10,
    "sqrt": 10,
    "clamp": 2,
    "fabs": 0,
    "as_type": 0,
    "offset": 1,
    "precise": 0,
}
_SIGNS = re.compile(r"<<|>>|<=|>=|==|!=|&&|\|\||[-+*<>&|^!?%/]")
_CALL = re.compile(r"(\w+)(?:<[\w, ]+>)?\(")
_LOOP = re.compile(r"for \(int \w+ = (\S+); \w+ < (\S+); \+\+\w+\) \{")
_WALK = re.compile(r"walk<(\d), \d, \w+>")


def operations(kernel: str, trips: Callable[[], float]) -> float:
    """Of one thread. `trips`: rounds of a walk along neighbours."""
    times, total = [1.0], 0.0
    for line in kernel.splitlines():
        text = line.strip()
        if loop := _LOOP.fullmatch(text):
            begin, end = (int(bound) if bound.isdecimal() else None for bound in loop.groups())
            rounds = 1.0 if begin is None or end is None else float(end - begin)
            times.append(times[-1] * rounds)
            total += 2 * times[-1]
        elif text.startswith("}"):
            times.pop()
            if text.endswith("{"):  # else
                times.append(times[-1])
        elif text.endswith("{"):
            times.append(times[-1])
            total += times[-1]
        elif text.endswith(";"):
            total += times[-1] * _line(text, trips)
    return total


def _line(text: str, trips: Callable[[], float]) -> float:
    """Operators, functions, and an operation for each element that is loaded or stored."""
    if walk := _WALK.search(text):
        # multiply, subtract, twice multiply, add, and the digit: shift, mask, convert
        return trips() * int(walk[1]) * 8 + 2 * int(walk[1])
    if not any(sign in text for sign in "=("):
        return 0  # a declaration
    right = text.split(" = ", 1)[-1]
    plain = re.sub(r"<[a-z]+>\(", "(", right)
    signs = len(_SIGNS.findall(plain)) - plain.count("e-") - plain.count("(-")
    calls = sum(_FUNCTIONS.get(name, 1) for name in _CALL.findall(plain))
    return signs + calls + text.count("[")


def of_encoder(type: str, encoder: Encoder) -> float:
    """Operations a weight."""
    source, total = encoder_source(encoder), 0.0
    for phase in encoder.phases:
        name = phase_name(encoder, phase)
        kernel = source.split(f"kernel void {name}(")[1].split("\nkernel void ")[0].split(") {\n", 1)[1]
        total += operations(kernel, lambda: longest_walk(type)) * phase.lanes / TYPES[type].block
    return total


def table(chosen: Collection[str] = ()) -> Iterator[str]:
    """Lines; of all types where none are chosen."""
    yield "ESTIMATED upper limits in Mweights a second: operations / memory, the lower of them counts"
    yield ""
    yield f"| type | importance | operations a weight | bytes a weight | {' | '.join(g.name for g in GPUS)} |"
    yield "|---|---|--:|--:|" + "--:|" * len(GPUS)
    for (type, weighted), encoder in encoders().items():
        if chosen and type not in chosen:
            continue
        count = of_encoder(type, encoder)
        moved = bytes_moved(encoder, TYPES[type].block, TYPES[type].bytes)
        limits = " | ".join(
            f"{g.cores * _LANES * g.ghz * 1000 / count:.0f} / {g.gigabytes_per_second * 1000 / moved:.0f}"
            for g in GPUS
        )
        yield f"| {type} | {'yes' if weighted else 'no'} | {count:.0f} | {moved:.0f} | {limits} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="TYPE", help="all types by default")
    for line in table({name.upper() for name in parser.parse_args().types}):
        print(line)


if __name__ == "__main__":
    main()
