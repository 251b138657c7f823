"""Reading, moving and writing the scales of blocks, against ggml's decoder."""

import numpy as np
import pytest
import torch

from quantmill.qkernels import scales
from quantmill.qkernels.types import TYPES
from tests.support import oracle

QUANTIZED = sorted(name for name, row in TYPES.items() if row.family != "plain")


def blocks_of(type: str, n_rows: int = 6, n_blocks: int = 3) -> torch.Tensor:
    """Random codes under scales of usual size, and one block whose scales are zero."""
    row = TYPES[type]
    rng = np.random.default_rng(row.id)
    raw = rng.integers(0, 256, (n_rows, n_blocks, row.bytes), np.uint8)
    for format, place in row.scales:
        value = rng.uniform(0.01, 2, (n_rows, n_blocks)).astype("<f2")
        value[0, 0] = 0
        if format == "f16":
            raw[..., place : place + 2] = value[..., None].view(np.uint8)
        elif format == "e8m0":
            raw[..., place] = rng.integers(120, 130, value.shape)
        elif format == "ue4m3":
            raw[..., place] = np.where(value == 0, 0, rng.integers(20, 80, value.shape))
        else:
            bits = value.view(np.uint16)
            for word in range(4):
                at = place + 2 * word + 1
                raw[..., at] = raw[..., at] & 15 | (bits >> 4 * word & 15) << 4
    return torch.from_numpy(raw.reshape(n_rows, -1))


def decoded(blocks: torch.Tensor, type: str) -> np.ndarray:
    return oracle.dequantize(blocks.numpy(), type)


@pytest.mark.parametrize("type", QUANTIZED)
def test_parts_add_up_to_the_weight(type):
    blocks = blocks_of(type)
    np.testing.assert_allclose(sum(scales.parts(blocks, type)), decoded(blocks, type), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("type", QUANTIZED)
def test_what_was_read_is_written_back(type):
    blocks = blocks_of(type)
    assert torch.equal(scales.write_scales(blocks, type, scales.read_scales(blocks, type)), blocks)


@pytest.mark.parametrize("type", QUANTIZED)
def test_a_moved_scale_decodes_to_the_moved_weight(type):
    """ggml reads the bytes with the new scales as `scaled` computed the weights, up to the scale's own rounding."""
    blocks = blocks_of(type)
    factor = 2.0 if "MXFP4" in type or "NVFP4" in type else 1.25  # those grids hold a doubled scale exactly
    old = scales.read_scales(blocks, type)
    change = torch.full_like(old, factor - 1)
    written = scales.write_scales(blocks, type, old * factor)
    expected = scales.scaled(blocks, type, change)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(decoded(written, type), expected, rtol=2e-3, atol=2e-3 * scale)
    assert not torch.equal(written, blocks)


@pytest.mark.parametrize("type", QUANTIZED)
def test_only_scale_bytes_change(type):
    row = TYPES[type]
    blocks = blocks_of(type)
    written = scales.write_scales(blocks, type, scales.read_scales(blocks, type) * 1.25)
    changed = (written != blocks).view(-1, row.bytes).any(0).nonzero().flatten().tolist()
    widths = {"f16": 2, "f16 in nibbles": 8}
    allowed = {place + i for format, place in row.scales for i in range(widths.get(format, 1))}
    assert set(changed) <= allowed


@pytest.mark.parametrize("type", QUANTIZED)
def test_gradient_is_the_derivative(type):
    """The weights are linear in every scale, so a difference is the derivative."""
    blocks = blocks_of(type)
    row = TYPES[type]
    shape = (*blocks.shape[:-1], blocks.shape[-1] // row.bytes, len(row.scales))
    rng = np.random.default_rng(1)
    change = torch.from_numpy(rng.uniform(-0.1, 0.1, shape)).float()
    made = scales.scaled(blocks, type, change)
    weights = torch.from_numpy(rng.normal(size=made.shape)).float()
    found = scales.gradient(blocks, type, change, made, weights.clone())
    assert found.shape == shape
    for number in range(len(row.scales)):
        moved = change.clone()
        moved[2, 1, number] += 0.5
        difference = ((scales.scaled(blocks, type, moved) - made) * weights).double().sum()
        assert float(difference) == pytest.approx(0.5 * float(found[2, 1, number]), rel=1e-3, abs=1e-3)


def test_a_scale_beyond_its_format_is_the_largest():
    blocks = blocks_of("Q4_0")
    old = scales.read_scales(blocks, "Q4_0")
    written = scales.write_scales(blocks, "Q4_0", old * 1e9)
    found = scales.read_scales(written, "Q4_0")
    assert float(found.max()) == 65504.0
    assert torch.equal(found == 0, old == 0)


@pytest.mark.parametrize(("type", "last"), [("MXFP4", 254), ("NVFP4", 126)])
def test_small_scales_go_to_the_nearest_of_their_grid(type, last):
    row = TYPES[type]
    blocks = torch.zeros(1, row.bytes, dtype=torch.uint8)
    blocks[:, : len(row.scales)] = 60
    grid = scales.grid(row.scales[0][0], torch.device("cpu"))[: last + 1].numpy()
    for value in (grid[61] * 1.01, grid[62] * 0.99, grid[70], grid[last]):
        written = scales.write_scales(blocks, type, torch.full((1, 1, len(row.scales)), float(value)))
        found = float(scales.read_scales(written, type)[0, 0, 0])
        assert abs(found - value) == np.abs(grid - np.float32(value)).min()
