"""The engine of the CPU: rows as numpy arrays, on a number of threads, without torch. An EngineModule."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from quantmill.qkernels import plain
from quantmill.qkernels.checks import checked_importance, require_finite, require_finite_scales
from quantmill.qkernels.decoders import decoder_of
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.engines import Engine, EngineRow, RowQuantizer
from quantmill.qkernels.types import QuantType, Search, get_type, readable_type


def _count(threads: int | None) -> int:
    return threads or os.cpu_count() or 1


def quantize(
    engine: EngineRow,
    rows: Any,
    type: QuantType,
    importance: np.ndarray | None,
    threads: int | None,
    search: Search,
) -> Any:
    """rows f32 [n_rows, n_cols], an array or a tensor, with checked importance → u8 [n_rows, row_bytes] of the kind."""
    if isinstance(rows, np.ndarray):
        return _quantized(rows, "F32", type, importance, threads, search)
    import torch

    done = _quantized(rows.cpu().numpy(), "F32", type, importance, threads, search)
    return torch.from_numpy(done).to(rows.device)


def _quantized(
    rows: np.ndarray,
    stored: str,
    type: QuantType,
    importance: np.ndarray | None,
    threads: int | None,
    search: Search,
) -> np.ndarray:
    """`stored`: the type of the rows: F32 as float32, F16 or BF16 as uint16."""
    if type.family == "plain":
        return _converted(np.ascontiguousarray(rows).view(np.uint8), get_type(stored), type, threads)
    from quantmill.qkernels.lanes import cpu, native

    encoder = encoder_of(type.name, importance is not None, search)
    out, finite = cpu.encode(type, encoder, rows, importance, _count(threads), native.host(), stored)
    if not finite:
        require_finite_scales(out, type)
    return out


def _converted(raw: np.ndarray, source: QuantType, type: QuantType, threads: int | None) -> np.ndarray:
    """Rows u8 [n_rows, row_bytes] of any type as those of a plain one.

    Raises NotFiniteError for the first number that is not finite, TooLargeError where `type` cannot hold one.
    """
    if source.family == "plain":
        from quantmill.qkernels.lanes.cpu_plain import convert
        from quantmill.qkernels.lanes.native import host

        done = np.empty((len(raw), type.row_bytes(raw.shape[1] // source.bytes)), np.uint8)
        whole = np.ascontiguousarray(raw)
        finite = convert(whole, source.name, done, type.name, _count(threads), host())
    else:
        done = dequantize(raw, source, type.name, None, threads).view(np.uint8)
        finite = plain.all_finite(done, type)
    if not finite:
        require_finite(dequantize(raw, source, "F32", None, threads))
        require_finite_scales(done, type)
    return done


def quantize_stored(
    raw: np.ndarray,
    source_type: str,
    type: str,
    importance: np.ndarray | None,
    threads: int | None = None,
    search: Search = "default",
) -> np.ndarray:
    """Stored rows u8 [n_rows, row_bytes] of any type → u8 [n_rows, row_bytes] of `type`.

    `quantize` of the same rows as float32, without making them: each thread widens or decodes what it searches.
    Raises QuantizeError as `quantize` does.
    """
    source, target = readable_type(source_type), get_type(type)
    weights = checked_importance(importance, raw.shape[1] // source.bytes * source.block, target, search)
    if target.family == "plain":
        return _converted(raw, source, target, threads)
    if source.family != "plain":
        return _requantized(raw, source, target, weights, threads, search)
    words = raw.view("<f4" if source.name == "F32" else "<u2")
    return _quantized(words, source.name, target, weights, threads, search)


def blocks_of(
    parts: np.ndarray,
    source: QuantType,
    type: QuantType,
    importance: np.ndarray | None,
    rows: np.ndarray | None,
    search: Search,
) -> np.ndarray:
    """The blocks of `type` that `quantize_stored` makes of parts of finite rows, on this thread.

    parts u8 [n, bytes] of the type `source`; importance f32 [n, n_weights], checked, of the columns of each; rows u8
    [n, row_bytes] that they are of, for encoders that use a row's mean square. → u8 [n, bytes].
    """
    from quantmill.qkernels.lanes import cpu
    from quantmill.qkernels.lanes.native import host

    def numbers(stored: np.ndarray) -> np.ndarray:
        return dequantize(stored, source, "F32", None, 1)

    x, sigma = numbers(parts), None
    if rows is not None:
        sigma = np.repeat(cpu.row_sigmas(numbers(rows), "F32", host()), x.shape[1] // type.block)
    weights = None if importance is None else importance.reshape(-1, type.block)
    encoder = encoder_of(type.name, importance is not None, search)
    blocks = cpu.encode_apart(type, encoder, x.reshape(-1, type.block), weights, sigma, host())
    return blocks.reshape(len(parts), -1)


def _requantized(
    raw: np.ndarray,
    source: QuantType,
    type: QuantType,
    importance: np.ndarray | None,
    threads: int | None,
    search: Search,
) -> np.ndarray:
    from quantmill.qkernels.lanes.cpu_requantize import requantize
    from quantmill.qkernels.lanes.native import host

    steps = decoder_of(source.name), encoder_of(type.name, importance is not None, search)
    done = requantize(source, steps[0], type, steps[1], raw, importance, _count(threads), host())
    if done is None:
        require_finite(dequantize(raw, source, "F32", None, threads))
    assert done is not None
    out, finite = done
    if not finite:
        require_finite_scales(out, type)
    return out


def dequantize(
    blocks: np.ndarray, type: QuantType, to: str, out: np.ndarray | None, threads: int | None
) -> np.ndarray:
    """blocks u8 [..., row_bytes] → numbers [..., n_cols] of the plain type `to`, in the memory `out` if it is given."""
    *outer, row_bytes = blocks.shape
    shape = (*outer, row_bytes // type.bytes * type.block)
    if out is None:
        out = np.empty(shape, plain.ELEMENTS[to])
    assert (out.shape, out.dtype) == (shape, plain.ELEMENTS[to])
    assert out.flags.c_contiguous
    from quantmill.qkernels.lanes import cpu_decode, cpu_plain, native

    whole = np.ascontiguousarray(blocks)
    if type.family == "plain":
        cpu_plain.convert(whole, type.name, out, to, _count(threads), native.host())
        return out
    raw = whole.reshape(math.prod(blocks.shape) // type.bytes, type.bytes)
    numbers = out.reshape(len(raw), type.block)
    cpu_decode.decode(type, decoder_of(type.name), raw, numbers, to, _count(threads), native.host())
    return out


def decode(engine: EngineRow, type: QuantType, raw: Any, numbers: Any, to: str) -> None:
    """Tensors on the CPU, raw u8 [n, bytes] → numbers [n, block] of the type `to`, on as many threads as torch has."""
    import torch

    from quantmill.qkernels.lanes import cpu_decode, native

    words = (numbers.view(torch.int16) if to == "BF16" else numbers).detach().numpy()
    cpu_decode.decode(
        type, decoder_of(type.name), raw.numpy(), words, to, torch.get_num_threads(), native.host()
    )


class _Quantizer:
    def __init__(self, threads: int | None, search: Search) -> None:
        self._threads, self._search = threads, search

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray:
        return plain.read_in(raw)

    def quantize(
        self, loaded: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray:
        return quantize_stored(loaded, source_type, type, importance, self._threads, self._search)

    def finish(self) -> None:
        pass


def quantizers(engine: Engine, threads: int | None, search: Search, guard: object) -> list[RowQuantizer]:
    """What an assembly line quantizes with, on `threads` threads; nobody checks the judge."""
    return [_Quantizer(threads, search)]
