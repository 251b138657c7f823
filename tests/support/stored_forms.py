"""Forms in which checkpoints of the tiny models store matrices: packed, or experts as one stack."""

from __future__ import annotations

import numpy as np

from tests.support.later_layers import floats


def mxfp4_blocks(
    random: np.random.RandomState, name: str, shape: list[int]
) -> dict[str, tuple[str, np.ndarray]]:
    """The checkpoint's own form: [experts, out, in / 32, 16] codes of the transposed matrix."""
    experts, columns, rows = shape
    codes = random.randint(0, 256, (experts, rows, columns // 32, 16)).astype(np.uint8)
    exponents = random.randint(118, 124, (experts, rows, columns // 32)).astype(np.uint8)
    return {f"{name}_blocks": ("U8", codes), f"{name}_scales": ("U8", exponents)}


def mxfp4_packed(
    random: np.random.RandomState, name: str, shape: list[int]
) -> dict[str, tuple[str, np.ndarray]]:
    """compressed-tensors' form: two codes a byte, an exponent for each 32."""
    rows, columns = shape
    codes = random.randint(0, 256, (rows, columns // 2)).astype(np.uint8)
    exponents = random.randint(118, 124, (rows, columns // 32)).astype(np.uint8)
    return {f"{name}_packed": ("U8", codes), f"{name}_scale": ("U8", exponents)}


def fp8(
    random: np.random.RandomState, name: str, shape: list[int], in_blocks: bool
) -> dict[str, tuple[str, np.ndarray]]:
    """A scale for each block of 128 by 128 (DeepSeek), or for each row (compressed-tensors)."""
    codes = random.randint(0, 127, shape).astype(np.uint8) | (random.randint(0, 2, shape) << 7).astype(
        np.uint8
    )
    blocks = [-(-n // 128) for n in shape] if in_blocks else [shape[0], 1]
    scales = random.uniform(1e-4, 2e-4, blocks).astype(np.float32)
    suffix = "_scale_inv" if in_blocks else "_scale"
    return {
        name: ("F8_E4M3", codes),
        name + suffix: ("F32", scales) if in_blocks else floats("BF16", scales),
    }


def as_mimo(
    random: np.random.RandomState, found: dict[str, tuple[str, np.ndarray]]
) -> dict[str, tuple[str, np.ndarray]]:
    """Experts in MXFP4; other matrices in FP8, queries, keys and values in four parts whose blocks are cut off."""
    out: dict[str, tuple[str, np.ndarray]] = {}
    for name, (dtype, values) in found.items():
        rows, columns = values.shape if values.ndim == 2 else (0, 0)
        if ".experts." in name:
            packed = mxfp4_packed(random, name, [rows, columns])
            out |= {key.removesuffix("_packed"): value for key, value in packed.items()}
        elif "qkv_proj" in name:
            stored = fp8(random, name, [rows, columns], in_blocks=True)
            scales = random.uniform(1e-4, 2e-4, (4 * -(-rows // 4 // 128), columns // 128)).astype(np.float32)
            out |= stored | {f"{name}_scale_inv": ("F32", scales)}
        elif "_proj" in name and "eh_proj" not in name:
            out |= fp8(random, name, [rows, columns], in_blocks=True)
        else:
            out[name] = (dtype, values)
    return out


def fused(found: dict[str, tuple[str, np.ndarray]]) -> dict[str, tuple[str, np.ndarray]]:
    """Experts stored one by one, stacked as newer checkpoints have them."""
    out = {name: value for name, value in found.items() if ".experts." not in name}
    for prefix in sorted({name.split(".experts.")[0] for name in found if ".experts." in name}):
        stacks = {
            kind: np.stack([found[f"{prefix}.experts.{i}.{kind}_proj.weight"][1] for i in range(4)])
            for kind in ("gate", "up", "down")
        }
        out[f"{prefix}.experts.gate_up_proj"] = (
            "BF16",
            np.concatenate([stacks["gate"], stacks["up"]], axis=1),
        )
        out[f"{prefix}.experts.down_proj"] = ("BF16", stacks["down"])
    return out
