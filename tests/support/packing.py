"""Random codes and scales of a matrix, packed in each form that checkpoints have, by the definitions of the formats:
without torch, so that all machines write the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.RandomState
Stored = dict[str, tuple[str, np.ndarray]]
# A weight's name without ".weight" and its shape -> what a checkpoint stores of it
Pack = Callable[[Random, str, tuple[int, int]], Stored]


def bf16(values: np.ndarray) -> tuple[str, np.ndarray]:
    return "BF16", (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def uniform(random: Random, shape: Any, low: float = 1e-3, high: float = 4e-3) -> np.ndarray:
    return random.uniform(low, high, shape).astype(np.float32)


def fp8_codes(random: Random, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    return "F8_E4M3", (random.randint(0, 127, shape) | random.randint(0, 2, shape) << 7).astype(np.uint8)


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, n] → I32 [rows, ceil(n · bits / 32)], one after another from the lowest bit on."""
    found = []
    for first in range(0, len(codes), 256):
        digits = codes[first : first + 256, :, None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8) & 1
        digits = digits.reshape(len(digits), -1)
        padded = np.pad(digits, ((0, 0), (0, -digits.shape[1] % 32)))
        found.append(np.packbits(padded, axis=1, bitorder="little").view("<i4"))
    return np.concatenate(found)


def fp8(scale: str, blocks: tuple[int, int] | None, kind: str = "F32") -> Pack:
    """`scale`: what follows the weight's name without ".weight". No blocks: one scale without dimensions."""

    def pack(random: Random, name: str, shape: tuple[int, int]) -> Stored:
        size = () if blocks is None else (-(-shape[0] // blocks[0]), -(-shape[1] // blocks[1]))
        scales = ("F32", np.asarray(uniform(random, size), np.float32))
        if kind == "F8_E8M0":
            scales = (kind, random.randint(115, 122, size).astype(np.uint8))
        return {f"{name}.weight": fp8_codes(random, shape), f"{name}{scale}": scales}

    return pack


def fp8_mistral(random: Random, name: str, shape: tuple[int, int]) -> Stored:
    act = ("BF16", np.zeros((), np.uint16))
    return {**fp8(".qscale_weight", None)(random, name, shape), f"{name}.qscale_act": act}


def fp8_modelopt(random: Random, name: str, shape: tuple[int, int]) -> Stored:
    inputs = ("F32", np.float32(0.5).reshape(()))
    return {**fp8(".weight_scale", None)(random, name, shape), f"{name}.input_scale": inputs}


def mxfp4(codes: str, scale: str, kind: str = "U8") -> Pack:
    def pack(random: Random, name: str, shape: tuple[int, int]) -> Stored:
        packed = random.randint(0, 256, (shape[0], shape[1] // 2)).astype(np.uint8)
        exponents = random.randint(115, 122, (shape[0], shape[1] // 32)).astype(np.uint8)
        code_type = "I8" if kind == "F8_E8M0" else "U8"
        return {
            f"{name}{codes}": (code_type, packed.view(np.int8) if code_type == "I8" else packed),
            f"{name}{scale}": (kind, exponents),
        }

    return pack


def nvfp4_modelopt(random: Random, name: str, shape: tuple[int, int]) -> Stored:
    return {
        f"{name}.weight": ("U8", random.randint(0, 256, (shape[0], shape[1] // 2)).astype(np.uint8)),
        f"{name}.weight_scale": (
            "F8_E4M3",
            random.randint(0, 127, (shape[0], shape[1] // 16)).astype(np.uint8),
        ),
        f"{name}.weight_scale_2": ("F32", uniform(random, ())),
        f"{name}.input_scale": ("F32", uniform(random, ())),
    }


def nvfp4_compressed_tensors(random: Random, name: str, shape: tuple[int, int]) -> Stored:
    parts = nvfp4_modelopt(random, name, shape)
    return {
        f"{name}.weight_packed": parts[f"{name}.weight"],
        f"{name}.weight_scale": parts[f"{name}.weight_scale"],
        f"{name}.weight_global_scale": ("F32", uniform(random, (1,), 100, 4000)),
        f"{name}.input_global_scale": ("F32", uniform(random, (1,), 100, 4000)),
    }


def mixed_modelopt(random: Random, name: str, shape: tuple[int, int]) -> Stored:
    return (nvfp4_modelopt if "mlp" in name else fp8_modelopt)(random, name, shape)


def packed_int(
    bits: int, group: int | None, zeros: bool = False, order: bool = False, exact: bool = True
) -> Pack:
    """compressed-tensors' pack-quantized. exact: scales are halves too."""

    def pack(random: Random, name: str, shape: tuple[int, int]) -> Stored:
        rows, columns = shape
        groups = columns // group if group else 1
        codes = random.randint(0, 1 << bits, shape)
        scales = uniform(random, (rows, groups)) * (1 if exact else 1e-6)
        found: Stored = {
            f"{name}.weight_packed": ("I32", words(codes, bits)),
            f"{name}.weight_scale": bf16(scales),
            f"{name}.weight_shape": ("I64", np.array(shape, np.int64)),
        }
        if zeros:
            packed = words(random.randint(0, 1 << bits, (groups, rows)), bits).T
            found[f"{name}.weight_zero_point"] = ("I32", np.ascontiguousarray(packed))
        if order:
            found[f"{name}.weight_g_idx"] = ("I32", random.randint(0, groups, columns).astype(np.int32))
        return found

    return pack


def int8(strategy: str, zeros: bool = False) -> Pack:
    """compressed-tensors' int-quantized."""

    def pack(random: Random, name: str, shape: tuple[int, int]) -> Stored:
        size = {"channel": (shape[0], 1), "tensor": (1,), "group": (shape[0], shape[1] // 64)}[strategy]
        found: Stored = {
            f"{name}.weight": ("I8", random.randint(-128, 128, shape).astype(np.int8)),
            f"{name}.weight_scale": bf16(uniform(random, size)),
        }
        if zeros:
            found[f"{name}.weight_zero_point"] = ("I8", random.randint(-20, 20, size).astype(np.int8))
        return found

    return pack


def gptq(bits: int, group: int, symmetric: bool = False, order: bool = False) -> Pack:
    def pack(random: Random, name: str, shape: tuple[int, int]) -> Stored:
        rows, columns = shape
        groups = columns // group
        zeros = np.full((groups, rows), (1 << bits - 1) - 1)
        zeros = zeros if symmetric else random.randint(0, 1 << bits, (groups, rows))
        index = random.randint(0, groups, columns) if order else np.arange(columns) // group
        return {
            f"{name}.g_idx": ("I32", index.astype(np.int32)),
            f"{name}.qweight": (
                "I32",
                np.ascontiguousarray(words(random.randint(0, 1 << bits, (rows, columns)), bits).T),
            ),
            f"{name}.qzeros": ("I32", words(zeros, bits)),
            f"{name}.scales": ("F16", uniform(random, (groups, rows)).astype(np.float16)),
        }

    return pack


def bitnet(random: Random, name: str, shape: tuple[int, int]) -> Stored:
    digits = random.randint(0, 3, (4, shape[0] // 4, shape[1])) << np.array([0, 2, 4, 6])[:, None, None]
    return {
        f"{name}.weight": ("U8", digits.sum(0).astype(np.uint8)),
        f"{name}.weight_scale": bf16(uniform(random, (1,), 20, 90)),
    }
