"""Lane programs as the text of Metal kernels: a kernel a phase, a thread a lane, programs written out where called.

Arrays lie as on the other GPUs, `[element][lane]`; each is a buffer of its own, and the numbers of a call are packed in
the last one. Offsets into arrays are 64 bits wide.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.encoder import Encoder, Phase, kernel_name, kinds_of, most_lanes, pointers
from quantmill.qkernels.lanes.loader import load
from quantmill.qkernels.lanes.metal_body import MetalBody
from quantmill.qkernels.lanes.metal_prelude import PRELUDE
from quantmill.qkernels.lanes.metal_words import WORDS, Array, Value, Writer
from quantmill.qkernels.lanes.program import LaneError, Program
from quantmill.qkernels.types import QuantType

# What a GPU of Apple's binds to a kernel at most (Metal feature set tables: buffers in a compute function).
MOST_BUFFERS = 31
_POINTEES = {"float": "float", "int": "int", "uchar": "uchar", "half": "ushort", "brain": "ushort"}
_ELEMENTS = {"f32": "float", "i32": "int", "u8": "uchar"}
_TABLES = {"float32": "float", "int32": "int"}


@functools.cache
def _programs(module: str) -> dict[str, Any]:
    return load(module, WORDS, Program)


@dataclass(frozen=True)
class _Buffer:
    """A parameter of a kernel: what it points to, and where this thread's elements of it are."""

    kind: str
    first: str = ""
    apart: str = ""

    def array(self, name: str) -> Array:
        return Array(f"p_{name}" if not self.first else f"{name}_here", self.kind, self.apart)


def _kernel(name: str, buffers: Mapping[str, _Buffer], lanes: str, start: Sequence[str], b: Writer) -> str:
    """The text around a kernel's lines. `lanes`: how many threads have work, a text of `n` and sizes."""
    if len(buffers) + 1 > MOST_BUFFERS:
        raise LaneError(f"{name} binds {len(buffers) + 1} buffers; Metal has {MOST_BUFFERS}")
    parameters, places = [], []
    for number, (array, buffer) in enumerate(buffers.items()):
        pointer = (
            f"device {'' if buffer.array(array).name in b.stored else 'const '}{_POINTEES[buffer.kind]}*"
        )
        parameters.append(f"    {pointer} p_{array} [[buffer({number})]],")
        if buffer.first:
            places.append(f"    {pointer} {array}_here = p_{array} + {buffer.first};")
    return "\n".join(
        [
            f"kernel void {name}(",
            *parameters,
            f"    constant long* sizes [[buffer({len(buffers)})]],",
            "    uint thread_number [[thread_position_in_grid]]",
            ") {",
            "    const ulong n = ulong(sizes[0]);",
            "    const ulong number = ulong(thread_number);",
            f"    if (number >= {lanes}) {{ return; }}",
            *[f"    {line}" for line in start],
            *places,
            b.text(),
            "}",
            "",
        ]
    )


def _threads(lanes: int) -> str:
    return f"n * {lanes}ul" if lanes > 1 else "n"


_PER_ROW = "const ulong per_row = ulong(sizes[1]);"


def _buffers(encoder: Encoder, phase: Phase) -> dict[str, _Buffer]:
    """ "importance" is the same for all rows, so a block reads it by its place in the row; "row_sigma" by its row."""
    places = {"importance": ("(block % per_row)", "per_row"), "row_sigma": ("(block / per_row)", "")}
    places.update(dict.fromkeys(encoder.private, ("number", f"(n * {most_lanes(encoder)}ul)")))
    places.update(dict.fromkeys(encoder.tables, ("", "")))
    kinds = kinds_of(encoder)
    return {
        name: _Buffer(_ELEMENTS[kinds[name]], *places.get(name, ("block", "n"))) for name in pointers(phase)
    }


def phase_name(encoder: Encoder, phase: Phase) -> str:
    """What the kernel of a phase is called; two phases may run the same program on other arrays."""
    return f"{kernel_name(phase)}_{encoder.phases.index(phase)}"


def _phase_kernel(encoder: Encoder, phase: Phase) -> str:
    """sizes: blocks, blocks a row. Neighbouring threads work on neighbouring blocks."""
    buffers = _buffers(encoder, phase)
    arrays = {name: buffer.array(name) for name, buffer in buffers.items()}
    arguments = [arrays[a] if isinstance(a, str) else a for a in phase.arguments]
    several = phase.lanes > 1
    start = [f"const ulong block = {'number % n' if several else 'number'};"]
    if several:
        start.append("const int j = int(number / n);")
    if {"importance", "row_sigma"} & set(buffers):
        start.append(_PER_ROW)
    b = Writer()
    j = Value("j", "index", simple=True) if several else 0
    MetalBody(b, _programs(encoder.module_of(phase))[phase.function], [j, *arguments]).value()
    return _kernel(phase_name(encoder, phase), buffers, _threads(phase.lanes), start, b)


ROW_SIGMA = "row_sigma_kernel"


def _row_sigma_kernel() -> str:
    """Mean square of each row, a thread a row, added from left to right. sizes: rows, columns."""
    buffers = {"rows": _Buffer("float", "number * ulong(sizes[1])"), "sigma": _Buffer("float", "number")}
    start = ["const int n_cols = int(sizes[1]);"]
    b = Writer()
    n_cols = Value("n_cols", "index", simple=True)
    sum_of_squares = _programs("programs.common")["sum_of_squares"]
    total = MetalBody(b, sum_of_squares, [buffers["rows"].array("rows"), 0, n_cols]).value()
    mean = WORDS["div"].build(b, total, n_cols)
    WORDS["st"].build(b, buffers["sigma"].array("sigma"), 0, mean)
    return _kernel(ROW_SIGMA, buffers, "n", start, b)


RISKY = "risky_weights_kernel"


@functools.cache
def risky_source() -> str:
    """The text of a kernel that looks at 32 weights a thread. sizes: groups of 32, then the bounds' bits."""
    buffers = {"x": _Buffer("float", "number * 32ul"), "risk": _Buffer("int", "number")}
    arrays = [buffer.array(name) for name, buffer in buffers.items()]
    b = Writer()
    bounds = [Value(f"int(sizes[{i}])", "index", simple=True) for i in (1, 2, 3)]
    MetalBody(b, _programs("programs.risky")["risky_weights"], [0, *arrays, *bounds]).value()
    return "\n".join([PRELUDE, _kernel(RISKY, buffers, "n", [], b)])


@functools.cache
def encoder_source(encoder: Encoder) -> str:
    """The text of the kernels of one encoder, in ASCII as torch wants it; `phase_name` is what they are called."""
    texts = [_phase_kernel(encoder, phase) for phase in encoder.phases]
    if encoder.uses_row_sigma:
        texts.append(_row_sigma_kernel())
    return "\n".join([PRELUDE, *texts])


def decode_kernel_name(decoder: Decoder, to: str) -> str:
    return f"decode_{decoder.function}_{to.lower()}_kernel"


_NUMBERS = {"F32": "float", "F16": "half", "BF16": "brain"}


@functools.cache
def decoder_source(type: QuantType, decoder: Decoder) -> str:
    """The text of the kernels of one decoder, one for each plain type of numbers. sizes: blocks."""
    return "\n".join([PRELUDE, *(_decode_kernel(type, decoder, to) for to in _NUMBERS)])


def _decode_kernel(type: QuantType, decoder: Decoder, to: str) -> str:
    lanes = decoder.lanes
    block = f"number / {lanes}ul" if lanes > 1 else "number"
    tables = {name: _Buffer(_TABLES[make().dtype.name]) for name, make in decoder.tables.items()}
    buffers = {
        "blocks": _Buffer("uchar", f"{block} * {type.bytes}ul"),
        "y": _Buffer(_NUMBERS[to], f"number * {type.block // lanes}ul"),
        **tables,
    }
    arrays = {name: buffer.array(name) for name, buffer in buffers.items()}
    start = [f"const int j = int(number % {lanes}ul);"] if lanes > 1 else []
    operands = [arrays[o] if isinstance(o, str) else o for o in decoder.operands]
    b = Writer()
    j = Value("j", "index", simple=True) if lanes > 1 else 0
    program = _programs(decoder.module)[decoder.function]
    MetalBody(b, program, [j, arrays["blocks"], arrays["y"], *operands]).value()
    return _kernel(decode_kernel_name(decoder, to), buffers, _threads(lanes), start, b)
