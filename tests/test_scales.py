"""Reading, weighing and writing the scales of blocks, against ggml's decoder."""

import numpy as np
import pytest
import torch

from quantmill.qkernels import scales
from quantmill.qkernels.lattices import GRIDS, LATTICES
from quantmill.qkernels.pulls import of_groups
from quantmill.qkernels.subscales import sub_scales_of
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


def written(blocks: torch.Tensor, type: str, values: torch.Tensor) -> torch.Tensor:
    blocks = blocks.clone()
    scales.write_scales(blocks, type, values)
    return blocks


@pytest.mark.parametrize("type", QUANTIZED)
def test_what_was_read_is_written_back(type):
    blocks = blocks_of(type)
    found = scales.read_scales(blocks, type)
    assert found.shape[-1] == scales.n_values(type)
    assert torch.equal(written(blocks, type, found), blocks)


@pytest.mark.parametrize("type", QUANTIZED)
def test_moved_scales_decode_to_moved_weights(type):
    """ggml reads the bytes with all scales doubled as twice the weights, minimums too."""
    blocks = blocks_of(type)
    old = scales.read_scales(blocks, type)
    n_scales = len(TYPES[type].scales)
    moved = old.clone()
    moved[..., :n_scales] *= 2
    new = written(blocks, type, moved)
    np.testing.assert_allclose(decoded(new, type), 2 * decoded(blocks, type), rtol=2e-3)
    assert not torch.equal(new, blocks)


@pytest.mark.parametrize("type", [name for name in QUANTIZED if sub_scales_of(name)])
def test_sub_scales_are_the_lattices(type):
    """Against what compensation reads; another number is found again there, and nothing else has changed."""
    blocks = blocks_of(type)
    sub = sub_scales_of(type)
    lattice = LATTICES.get(type) or GRIDS[type]
    n_scales = len(TYPES[type].scales)
    old = scales.read_scales(blocks, type)
    choice = lattice.unpack(blocks)
    assert torch.equal(old[..., n_scales:][..., : sub.n], choice.scales.float())
    if sub.min_range:
        assert torch.equal(old[..., n_scales + sub.n :], choice.mins.float())
    moved = old.clone()
    moved[..., n_scales:] += 2 * torch.randint(-2, 3, moved[..., n_scales:].shape)
    moved[..., n_scales:][..., : sub.n].clamp_(*sub.range)
    if sub.min_range:
        moved[..., n_scales + sub.n :].clamp_(*sub.min_range)
    new = written(blocks, type, moved)
    found = lattice.unpack(new)
    assert torch.equal(scales.read_scales(new, type), moved)
    choice.scales = moved[..., n_scales:][..., : sub.n].to(torch.int16)
    if sub.min_range:
        choice.mins = moved[..., n_scales + sub.n :].to(torch.int16)
    assert torch.equal(lattice.decode(found), lattice.decode(choice))


@pytest.mark.parametrize("type", [name for name in QUANTIZED if sub_scales_of(name)])
def test_scales_move_without_those_of_groups(type):
    """They are the first values, with the same gradient, and writing them leaves the others."""
    blocks = blocks_of(type)
    own = scales.read_scales(blocks, type, within=False)
    assert own.shape[-1] == scales.n_values(type, within=False) == len(TYPES[type].scales)
    every = scales.read_scales(blocks, type)
    assert torch.equal(own, every[..., : own.shape[-1]])
    every[..., : own.shape[-1]] *= 2
    assert torch.equal(written(blocks, type, 2 * own), written(blocks, type, every))
    n_groups = every.shape[-2] * TYPES[type].block // scales.group_of(type)
    products, sums = torch.randn(2, len(blocks), n_groups)
    whole = scales.gradient(blocks, type, products.clone(), sums.clone())
    found = scales.gradient(blocks, type, products, sums, within=False)
    assert torch.equal(found, whole[..., : own.shape[-1]])


@pytest.mark.parametrize("type", [name for name in QUANTIZED if sub_scales_of(name)])
def test_sub_scales_go_to_the_nearest_and_never_to_zero(type):
    blocks = blocks_of(type)
    sub = sub_scales_of(type)
    n_scales = len(TYPES[type].scales)
    values = scales.read_scales(blocks, type)
    own = values[..., n_scales:][..., : sub.n].clone()
    near = own + (0.9 if sub.odd else 0.4) * torch.rand_like(own).sub_(0.5).sign_()
    values[..., n_scales:][..., : sub.n] = near
    assert torch.equal(
        scales.read_scales(written(blocks, type, values), type)[..., n_scales:][..., : sub.n],
        torch.where(own == 0, near.sign().clamp(*sub.range), own),
    )
    values[..., n_scales:][..., : sub.n] = 1e-3
    found = scales.read_scales(written(blocks, type, values), type)[..., n_scales:][..., : sub.n]
    assert bool((found == 1).all())
    values[..., n_scales:][..., : sub.n] = 1e3
    found = scales.read_scales(written(blocks, type, values), type)[..., n_scales:][..., : sub.n]
    assert bool((found == sub.range[1]).all())


@pytest.mark.parametrize("type", QUANTIZED)
def test_only_scale_bytes_change(type):
    row = TYPES[type]
    blocks = blocks_of(type)
    old = scales.read_scales(blocks, type)
    moved = old.clone()
    moved[..., : len(row.scales)] *= 1.25
    changed = (written(blocks, type, moved) != blocks).view(-1, row.bytes).any(0).nonzero().flatten().tolist()
    widths = {"f16": 2, "f16 in nibbles": 8}
    allowed = {place + i for format, place in row.scales for i in range(widths.get(format, 1))}
    assert set(changed) <= allowed


@pytest.mark.parametrize("type", QUANTIZED)
def test_gradient_is_the_derivative(type):
    """The weights are linear in every scale, so ggml's difference between twice a scale and the scale is it."""
    blocks = blocks_of(type)
    made = torch.from_numpy(decoded(blocks, type))
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=made.shape)).float()
    products, sums, _ = of_groups(weights, made, scales.group_of(type))
    found = scales.gradient(blocks, type, products, sums)
    old = scales.read_scales(blocks, type)
    assert found.shape == old.shape
    sub = sub_scales_of(type)
    for number in range(old.shape[-1]):
        moved = old.clone()
        at = moved[2, 1, number]
        if number < len(TYPES[type].scales):
            at *= 2
            share = 1.0
        else:  # the next number that there is, up or down
            step = (2 if sub.odd else 1) * (-1 if at > 2 else 1)
            share = step / float(at) if at != 0 else 0.0
            at += step
            if at == 0 or share == 0.0:
                continue
        change = decoded(written(blocks, type, moved), type) - made.numpy()
        difference = float((change.astype(np.float64) * weights.numpy()).sum())
        scale = float(np.abs(change * weights.numpy()).sum())
        assert difference == pytest.approx(
            share * float(found[2, 1, number]), rel=1e-3, abs=1e-4 * scale + 1e-5
        )


def test_a_scale_beyond_its_format_is_the_largest():
    blocks = blocks_of("Q4_0")
    old = scales.read_scales(blocks, "Q4_0")
    found = scales.read_scales(written(blocks, "Q4_0", old * 1e9), "Q4_0")
    assert float(found.max()) == 65504.0
    assert torch.equal(found == 0, old == 0)


@pytest.mark.parametrize(("type", "last"), [("MXFP4", 254), ("NVFP4", 126)])
def test_small_scales_go_to_the_nearest_of_their_grid(type, last):
    row = TYPES[type]
    blocks = torch.zeros(1, row.bytes, dtype=torch.uint8)
    blocks[:, : len(row.scales)] = 60
    grid = scales.grid(row.scales[0][0], torch.device("cpu"))[: last + 1].numpy()
    for value in (grid[61] * 1.01, grid[62] * 0.99, grid[70], grid[last]):
        new = written(blocks, type, torch.full((1, 1, len(row.scales)), float(value)))
        found = float(scales.read_scales(new, type)[0, 0, 0])
        assert abs(found - value) == np.abs(grid - np.float32(value)).min()
