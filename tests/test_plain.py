"""F32, F16 and BF16 become one another as ggml makes them: every number, any length, any address, any threads."""

from __future__ import annotations

import itertools
import platform
import tracemalloc

import numpy as np
import pytest

from quantmill.qkernels import QuantizeError, dequantize, quantize, to_float32
from quantmill.qkernels.cpu_engine import quantize_stored
from quantmill.qkernels.lanes.cpu_plain import convert
from quantmill.qkernels.lanes.native import Processor, host
from quantmill.qkernels.types import NotFiniteError, TooLargeError
from tests.support import oracle

WORDS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
NOT_FINITE = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
PAIRS = [pair for pair in itertools.product(WORDS, WORDS) if pair[0] != pair[1]]
X86 = platform.machine().lower() in ("x86_64", "amd64")
PROCESSORS = [host(), *([Processor("x86-64", "", 4), Processor("haswell", "", 8)] if X86 else [])]


def every_number(type: str) -> np.ndarray:
    """All finite numbers of a type of sixteen bits, sub-normals and both zeros included; of F32 all of these, what lies
    halfway to the next of each, and the floats beside."""
    if type != "F32":
        words = np.arange(1 << 16, dtype=np.uint16)
        return words[words & NOT_FINITE[type] != NOT_FINITE[type]]
    halves = to_float32(every_number("F16").view(np.uint8), "F16").view(np.uint32)
    brains = every_number("BF16").astype(np.uint32) << 16
    subnormal = np.arange(0, 1 << 25, 1021, dtype=np.uint32) + np.uint32(
        0x32000000
    )  # halves' least and below
    near = [around + np.uint32(step) for around, tie in ((halves, 0x1000), (brains, 0x8000))
            for step in (0, tie - 1, tie, tie + 1)]  # fmt: skip
    words = np.concatenate([*near, subnormal, subnormal | np.uint32(1 << 31)])
    return words[words & np.uint32(NOT_FINITE["F32"]) != NOT_FINITE["F32"]]


def by_ggml(words: np.ndarray, source: str, target: str) -> np.ndarray:
    """What ggml makes of words of a type."""
    raw = words.reshape(1, -1).view(np.uint8)
    numbers = raw.view(np.float32) if source == "F32" else oracle.dequantize(raw, source)
    done = numbers.view(np.uint8) if target == "F32" else oracle.quantize(numbers, target)
    return done.view(WORDS[target]).reshape(-1)


def representable(words: np.ndarray, source: str, target: str) -> np.ndarray:
    """Those of the words that the other type holds a finite number for."""
    made = by_ggml(words, source, target)
    return words[made & NOT_FINITE[target] != NOT_FINITE[target]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_number_as_ggml_and_on_any_threads(source: str, target: str, threads: int) -> None:
    words = representable(every_number(source), source, target)
    words = np.tile(words, 1 + 400_000 // len(words))  # several pieces for each thread
    words = words[: len(words) // 7 * 7]
    raw = words.reshape(7, -1).view(np.uint8)
    expected = by_ggml(words, source, target)
    found = quantize_stored(raw, source, target, None, threads)
    assert np.array_equal(found.view(WORDS[target]).reshape(-1), expected)
    decoded = dequantize(raw, source, to=target, threads=threads)
    assert np.array_equal(decoded.view(WORDS[target]).reshape(-1), expected)
    if source == "F32":
        assert np.array_equal(quantize(raw.view(np.float32), target, threads=threads), found)


@pytest.mark.parametrize("source", WORDS)
@pytest.mark.parametrize("target", WORDS)
@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
def test_any_length_at_any_address(source: str, target: str, processor: Processor) -> None:
    """Nothing but the numbers is written; bytes of a file begin anywhere."""
    words = representable(every_number(source), source, target)
    words = np.random.default_rng(0).choice(words, 150)
    expected = by_ggml(words, source, target)
    for n, begin in itertools.product([*range(1, 70), 127, 128, 129], (0, 1, 7)):
        raw = np.zeros(begin + words[:n].nbytes, np.uint8)
        raw[begin:] = words[:n].view(np.uint8)
        out = np.full(expected[:n].nbytes + begin + 64, 0xA5, np.uint8)
        inner = out[begin : begin + expected[:n].nbytes]
        assert convert(raw[begin:], source, inner, target, 1, processor)
        assert np.array_equal(inner.copy().view(WORDS[target]), expected[:n])
        assert (out[begin + inner.size :] == 0xA5).all()
        assert (out[:begin] == 0xA5).all()


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.name)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_is_not_finite_is_seen_and_passed_on(source: str, target: str, processor: Processor) -> None:
    least = NOT_FINITE[source]
    sign = 1 << (8 * np.dtype(WORDS[source]).itemsize - 1)
    for word, place in itertools.product((least, least | sign, least + 1, 2 * sign - 1), (0, 40, 66)):
        words = np.zeros(67, WORDS[source])
        words[place] = word
        out = np.empty(67, WORDS[target])
        assert not convert(words, source, out, target, 1, processor)
        found = to_float32(out.reshape(1, -1).view(np.uint8), target)[0]
        expected = to_float32(words.reshape(1, -1).view(np.uint8), source)[0]
        np.testing.assert_array_equal(found, expected)  # any NaN is any NaN
        assert np.signbit(found[place]) == np.signbit(expected[place])


@pytest.mark.parametrize("type", WORDS)
def test_to_itself_is_a_copy(type: str) -> None:
    words = np.random.default_rng(1).integers(0, 1 << 16, 4_099, np.uint16).astype(WORDS[type])
    words[:3] = NOT_FINITE[type] + 1  # a NaN that signals keeps its bits
    raw = words.reshape(1, -1).view(np.uint8)
    assert np.array_equal(dequantize(raw, type, to=type).view(np.uint8), raw)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("source", "target"), [*PAIRS, ("F32", "F32"), ("F16", "F16")])
def test_the_first_that_is_not_finite_is_named(source: str, target: str, threads: int) -> None:
    words = np.zeros((900, 700), WORDS[source])
    words[650, 3], words[650, 2], words[899, 1] = NOT_FINITE[source] + 1, NOT_FINITE[source], 1
    words[880, 699] = NOT_FINITE[source]
    with pytest.raises(NotFiniteError, match="weights: inf in row 650, column 2; nothing can"):
        quantize_stored(words.view(np.uint8), source, target, None, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("source", "target", "value"),
    [("F32", "F16", 65520.0), ("F32", "BF16", 3.4e38), ("BF16", "F16", 65536.0)],
)
def test_what_the_type_cannot_hold(source: str, target: str, value: float, threads: int) -> None:
    rows = np.zeros((900, 700), np.float32)
    rows[700, 9] = -value
    raw = quantize(rows, source)
    with pytest.raises(TooLargeError, match=f"row 700: weights too large for the scales of {target}"):
        quantize_stored(raw, source, target, None, threads)
    rows[800, 9] = np.inf
    with pytest.raises(QuantizeError, match="inf in row 800, column 9"):
        quantize(rows, target, threads=threads)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_takes_no_memory_but_the_result(source: str, target: str) -> None:
    raw = np.zeros((64, 1 << 15), WORDS[source]).view(np.uint8)
    quantize_stored(raw[:1], source, target, None, 1)
    tracemalloc.start()
    found = quantize_stored(raw, source, target, None, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < found.nbytes + (1 << 16)
