"""The CPU's compiler of the lane language: what each construct means, and that halves are rounded as IEEE says."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numpy as np
import pytest

from quantmill.qkernels.lanes.cpu_compiler import Unit
from quantmill.qkernels.lanes.cpu_words import WORDS
from quantmill.qkernels.lanes.native import compile_module, host, load
from quantmill.qkernels.lanes.program import LaneError, program
from quantmill.qkernels.lanes.simd import F32, I32, I64, LaneBuilder, loop

WIDTH = host().width
any_, f2h, h2f, i2f, ld, neg, st, where = (
    WORDS[name] for name in ("any_", "f2h", "h2f", "i2f", "ld", "neg", "st", "where")
)


def run(written: Any, given: np.ndarray, n_out: int, *constants: int) -> np.ndarray:
    """`written(X, OUT, *constants)` over arrays of lanes f32 [element, WIDTH]."""
    module = ir.Module("test")
    array = ir.VectorType(F32, WIDTH).as_pointer()
    function = ir.Function(module, ir.FunctionType(I32, [array, array]), "drive")
    b = LaneBuilder(function.append_basic_block("entry"), host())
    Unit(module).call(b, written, [*function.args, *constants])
    b.ret(I32(0))
    drive = load(compile_module(str(module), host()), "drive", [ctypes.c_void_p] * 2, host())
    x, out = aligned(len(given)), aligned(n_out)
    x[:] = given
    drive(x.ctypes.data, out.ctypes.data)
    return out


def aligned(n: int) -> np.ndarray:
    """f32 [n, WIDTH] at a multiple of 64 bytes, as lane programs expect it."""
    memory = np.zeros(n * WIDTH + 16, np.float32)
    skip = -(memory.ctypes.data // 4) % 16
    return memory[skip : skip + n * WIDTH].reshape(n, WIDTH)


X = np.random.default_rng(0).standard_normal((8, WIDTH)).astype(np.float32)


@program
def _sums(X, OUT, N):
    """A loop, a name that is bound again, and a choice made while compiling."""
    total = ld(X, 0)
    for i in range(1, N):
        total = total + ld(X, i)
    if N > 3:
        total = neg(total)
    else:
        total = total * 2.0
    st(OUT, 0, total)


@pytest.mark.parametrize(("n", "factor"), [(8, -1), (3, 2), (2, 2)])
def test_sums_go_from_first_to_last(n: int, factor: int) -> None:
    expected = X[0].copy()
    for i in range(1, n):
        expected += X[i]
    assert np.array_equal(run(_sums, X, 1, n)[0], np.float32(factor) * expected)


@program
def _pair(v):
    return v + 1.0, v * 3


@program
def _branches(X, OUT):
    """A result of two values, a branch taken by any lane, truth values, integers and shifts."""
    a, b = _pair(ld(X, 0))
    positive = (a > 0.0) & ~(b >= 2.0) | (a == b)
    number = where(positive, 1, 0)
    if any_(positive):
        a = where(positive, b, a)
    for k in range(3):
        number = (number << 1) | (k & 1)
    st(OUT, 0, a)
    st(OUT, 1, i2f(number ^ 5))


def test_branches_and_integers() -> None:
    x = X[0]
    a, b = x + np.float32(1), x * np.float32(3)
    positive = (a > 0) & ~(b >= 2) | (a == b)
    number = positive.astype(np.int32)
    for k in range(3):
        number = (number << 1) | (k & 1)
    found = run(_branches, X[:1], 2)
    assert np.array_equal(found[0], np.where(positive, b, a))
    assert np.array_equal(found[1], (number ^ 5).astype(np.float32))


@program
def _loop_names(X, OUT):
    """A name is a number before a loop and the loop's own in it."""
    i = 5
    st(OUT, i, ld(X, 0))
    i = i + 1
    st(OUT, i, ld(X, 1))
    for i in range(3):
        st(OUT, i, ld(X, i))


def test_a_loop_has_its_own_variable() -> None:
    found = run(_loop_names, X[:3], 7)
    assert np.array_equal(found[[5, 6, 0, 1, 2]], X[[0, 1, 0, 1, 2]])


@program
def _changes_kind(X, OUT):
    v = ld(X, 0)
    v = v > 0.0
    st(OUT, 0, where(v, 1.0, 0.0))


@program
def _forgets_an_argument(X, OUT):
    st(OUT, 0, _pair())


@program
def _turns_a_sign(X, OUT):
    st(OUT, 0, -ld(X, 0))


@program
def _is_no_lane_program(X, OUT):
    while True:
        st(OUT, 0, ld(X, 0))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (_changes_kind, r"_changes_kind \(.*\): v was <.*float> and becomes <.*i1>"),
        (_forgets_an_argument, r"_pair \(.*\) takes 1 arguments, not 0"),
        (_turns_a_sign, "- of a value: write neg"),
        (_is_no_lane_program, r"_is_no_lane_program \(.*\), line \d+: not in the lane language"),
    ],
)
def test_says_what_is_wrong_with_a_program(written: Callable[..., Any], message: str) -> None:
    with pytest.raises(LaneError, match=message):
        run(written, X, 1)


def test_halves_are_rounded_to_nearest_even() -> None:
    """Every half, what lies in the middle of two, and the floats next to both, of either sign."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves[-1] = 65536.0
    points = np.concatenate([halves, (halves[:-1] + halves[1:]) / 2, [1e-45, 1e-8, 7e4, 3e38, np.inf]])
    near = [np.nextafter(points, np.float32(side), dtype=np.float32) for side in (0, np.inf)]
    points = np.concatenate([points, *near]).astype(np.float32)
    points = np.concatenate([points, -points])
    points = np.resize(points, -(-points.size // WIDTH) * WIDTH)
    with np.errstate(over="ignore"):
        expected = points.astype(np.float16)
    module = ir.Module("test")
    signature = ir.FunctionType(I32, [F32.as_pointer(), I32.as_pointer(), F32.as_pointer(), I64])
    function = ir.Function(module, signature, "drive")
    b = LaneBuilder(function.append_basic_block("entry"), host())
    with loop(b, I64(0), function.args[3], I64(WIDTH)) as i:
        source, words, back = (b.gep(array, [i]) for array in function.args[:3])
        half = f2h.build(b, b.load(b.bitcast(source, b.floats.as_pointer()), align=4))
        b.store(half, b.bitcast(words, b.ints.as_pointer()), align=4)
        b.store(h2f.build(b, half), b.bitcast(back, b.floats.as_pointer()), align=4)
    b.ret(I32(0))
    convert = load(
        compile_module(str(module), host()), "drive", [*[ctypes.c_void_p] * 3, ctypes.c_int64], host()
    )
    found, again = np.empty(points.size, np.int32), np.empty(points.size, np.float32)
    convert(*(array.ctypes.data for array in (points, found, again)), points.size)
    assert np.array_equal(found, expected.view(np.uint16))
    assert np.array_equal(again.view(np.uint32), expected.astype(np.float32).view(np.uint32))
