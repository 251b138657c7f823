"""DeepSeek V4 as its checkpoints are stored: experts in MXFP4, other matrices in FP8, both with scales that are powers
of two, tables of whole numbers, and a layer that predicts further tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

IN_FP8 = re.compile(r"\.(wq_a|wq_b|wkv|wo_a|wo_b|shared_experts\.w[123])\.weight$")
IN_F32 = re.compile(r"hc_|attn_sink|\.ape$|gate\.bias$")
EXPERT = re.compile(r"\.experts\.\d+\.")
Random = np.random.RandomState
Stored = dict[str, tuple[str, np.ndarray]]


def tensors(random: Random, shapes: Mapping[str, Sequence[int]], n_experts: int) -> Stored:
    found: Stored = {}
    for name, shape in shapes.items():
        found |= _stored(random, name, tuple(shape), n_experts)
    return found | {"mtp.0.norm.weight": found["norm.weight"]}


def _stored(random: Random, name: str, shape: tuple[int, ...], n_experts: int) -> Stored:
    """One tensor, with the scales that belong to it."""
    scale = name.removesuffix("weight") + "scale"
    if EXPERT.search(name):
        codes = random.randint(-128, 128, (shape[0], shape[1] // 2)).astype(np.int8)
        return {name: ("I8", codes), scale: _exponents(random, (shape[0], shape[1] // 32), 118)}
    if IN_FP8.search(name) and ".compressor." not in name:
        codes = random.randint(0, 127, shape) | random.randint(0, 2, shape) << 7
        blocks = tuple(-(-n // 128) for n in shape)
        return {name: ("F8_E4M3", codes.astype(np.uint8)), scale: _exponents(random, blocks, 115)}
    if name.endswith("tid2eid"):
        rows = [random.permutation(n_experts)[: shape[1]] for _ in range(shape[0])]
        return {name: ("I64", np.array(rows, np.int64))}
    values = random.standard_normal(shape).astype(np.float32) * 0.05
    if IN_F32.search(name):
        return {name: ("F32", values)}
    return {name: ("BF16", (values.view(np.uint32) >> 16).astype(np.uint16))}


def _exponents(random: Random, shape: tuple[int, ...], least: int) -> tuple[str, np.ndarray]:
    return "F8_E8M0", random.randint(least, least + 3, shape).astype(np.uint8)


def in_floats(found: Stored) -> Stored:
    """The same values, none of them packed; read by torch's own eight-bit floats and the definition of E2M1."""
    import torch

    plain: Stored = {}
    for name, (kind, values) in found.items():
        if kind == "F8_E8M0":
            continue
        exponents = found.get(name.removesuffix("weight") + "scale", ("", np.zeros(0)))[1]
        scales = torch.from_numpy(exponents).view(torch.float8_e8m0fnu).float() if exponents.size else None
        if kind == "F8_E4M3":
            assert scales is not None
            spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
            decoded = torch.from_numpy(values).view(torch.float8_e4m3fn).float()
            plain[name] = ("F32", (decoded * spread[: values.shape[0], : values.shape[1]]).numpy())
        elif kind == "I8":
            assert scales is not None
            numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
            codes = values.view(np.uint8)
            pairs = np.stack((numbers[codes & 15], numbers[codes >> 4]), -1).reshape(len(codes), -1)
            plain[name] = ("F32", pairs * scales.repeat_interleave(32, 1).numpy())
        else:
            plain[name] = (kind, values)
    return plain
