"""Codes that move while scales are trained: where they go, when, and what it is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quantmill.calibrate.codes import HALF, STEP, MovingCodes, can_move
from quantmill.gguf_io import open_source
from quantmill.jobs.polish import run
from quantmill.jobs.polish_request import Result
from quantmill.qkernels import TYPES, quantize
from quantmill.qkernels.lattices import GRIDS, ScalarLattice, lattice_of
from tests.support.measure_models import tiny
from tests.support.oracle import dequantize
from tests.support.polishing import job, polished

MOVING = sorted(name for name in TYPES if can_move(name) and name not in GRIDS)
N_ROWS, N_COLS = 6, 512
GRID_STEPS = 16  # until the vectors of a grid type are looked at


def blocks_of(type: str) -> torch.Tensor:
    values = np.random.default_rng(3).normal(size=(N_ROWS, N_COLS)).astype(np.float32)
    return torch.from_numpy(np.array(quantize(values, type)))[None]


def decoded(blocks: torch.Tensor, type: str) -> np.ndarray:
    """By ggml's own decoder."""
    return dequantize(blocks[0].numpy(), type).reshape(N_ROWS, N_COLS).copy()


def neighbours(type: str, blocks: torch.Tensor, upwards: bool) -> np.ndarray:
    """The next value that each weight's group has, or its own at the end."""
    lattice = lattice_of(type)
    assert isinstance(lattice, ScalarLattice)
    scale, low = lattice.steps(lattice.unpack(blocks[0]))
    each = torch.tensor(lattice.levels) * scale[..., None]  # [n_rows, n_groups, n_levels]
    values = each if low is None else each - low[..., None]
    all_of_weight = np.sort(values.repeat_interleave(lattice.group, 1).numpy(), -1)
    own = decoded(blocks, type)[..., None]
    if upwards:
        return np.where(all_of_weight > own, all_of_weight, np.inf).min(-1)
    return np.where(all_of_weight < own, all_of_weight, -np.inf).max(-1)


def pulled(codes: MovingCodes, gradient: np.ndarray, rate: float, times: int = 1, free: bool = True) -> None:
    for _ in range(times):
        for rows in (slice(0, 4), slice(4, N_ROWS)):
            part = torch.from_numpy(gradient[rows])
            codes.pull(0, rows, part, part.square().sum(1), rate, free)
        codes.heard(0)
        codes.move(0)


@pytest.mark.parametrize("type", MOVING)
@pytest.mark.parametrize("upwards", [True, False])
def test_a_code_goes_one_step_against_the_gradient(type: str, upwards: bool) -> None:
    """Every fourth weight is pulled; the others, and those that have no further level, stay as they are."""
    blocks = blocks_of(type)
    before, wanted = decoded(blocks, type), neighbours(type, blocks, upwards)
    gradient = np.zeros((N_ROWS, N_COLS), np.float32)
    gradient[:, 1::4] = -1.0 if upwards else 1.0
    codes = MovingCodes(type, blocks)
    pulled(codes, gradient, rate=0.1, times=3)  # 0.2 of a step, and 0.1 from when the columns are known
    assert np.array_equal(decoded(blocks, type), before)
    pulled(codes, gradient, rate=0.1, times=2)
    expected = before.copy()
    expected[:, 1::4] = np.where(np.isfinite(wanted), wanted, before)[:, 1::4]
    assert np.array_equal(decoded(blocks, type), expected)
    assert not np.array_equal(expected, before)


@pytest.mark.parametrize("type", sorted(GRIDS))
def test_a_vector_goes_to_the_nearest_entry(type: str) -> None:
    """By brute force, in numpy: the entry nearest to the own one plus the wishes; signs stay, and what is not asked."""
    values = np.random.default_rng(5).normal(size=(N_ROWS, N_COLS)).astype(np.float32)
    blocks = torch.from_numpy(np.array(quantize(values, type, np.ones(N_COLS, np.float32))))[None]
    lattice, before = GRIDS[type], decoded(blocks, type)
    codes = MovingCodes(type, blocks)
    wishes = np.random.default_rng(6).uniform(-1, 1, before.shape).astype(np.float32)
    wishes[:, N_COLS // 2 :] *= 0.49  # none of them beyond half a step
    codes.wishes[0] = torch.from_numpy((wishes * STEP).astype(np.int16))
    old = lattice.unpack(blocks[0].clone())
    for _ in range(GRID_STEPS):
        pulled(codes, np.zeros((N_ROWS, N_COLS), np.float32), rate=0.1)
    new = lattice.unpack(blocks[0])
    grid = lattice.grid(torch.device("cpu")).numpy().astype(np.float64)
    levels = np.unique(grid)
    gap = (levels[-1] - levels[0]) / (len(levels) - 1)
    scale = np.repeat((old.d[..., None] * old.scales).flatten(1).sign().numpy(), lattice.group, 1)
    sign = scale if old.negative is None else np.where(old.negative.numpy(), -scale, scale)
    own = grid[old.entries.numpy()]
    step = (codes_wishes := (wishes * STEP).astype(np.int16) / STEP) * sign * gap
    wanted = own + step.reshape(own.shape)
    distance = ((wanted[:, :, None] - grid) ** 2).sum(-1)
    asked = (np.abs(codes_wishes).reshape(own.shape) > 0.5).any(-1)
    chosen = np.take_along_axis(distance, new.entries.numpy().astype(int)[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen[asked], distance.min(-1)[asked], rtol=1e-5)
    assert np.array_equal(new.entries.numpy()[~asked], old.entries.numpy()[~asked])
    assert not asked[:, asked.shape[1] // 2 :].any()
    assert (new.entries.numpy() != old.entries.numpy()).mean() > 0.05
    if old.negative is not None:
        assert torch.equal(new.negative, old.negative)


def test_a_weight_begins_where_the_originals_lies() -> None:
    blocks = blocks_of("Q4_0")
    before, above = decoded(blocks, "Q4_0"), neighbours("Q4_0", blocks, True)
    above = np.where(np.isfinite(above), above, before)
    original = before.copy()
    original[:, ::2] += 0.45 * (above - before)[:, ::2]  # nearly in the middle
    codes = MovingCodes("Q4_0", blocks)
    codes.begin(0, torch.from_numpy(original))
    assert np.array_equal(decoded(blocks, "Q4_0"), before)
    pulled(codes, np.full((N_ROWS, N_COLS), -1.0, np.float32), rate=0.1)
    expected = before.copy()
    expected[:, ::2] = above[:, ::2]
    assert np.array_equal(decoded(blocks, "Q4_0"), expected)


def test_a_weight_far_from_its_code_waits_until_it_is_pulled() -> None:
    """Nothing moves by itself, not even where another quantizer's code is not the nearest."""
    blocks = blocks_of("Q3_K")
    before = decoded(blocks, "Q3_K")
    codes = MovingCodes("Q3_K", blocks)
    codes.begin(0, torch.from_numpy(before + 10.0))
    codes.pull(0, slice(0, N_ROWS), torch.zeros(N_ROWS, N_COLS), torch.zeros(N_ROWS), 0.01, True)
    codes.heard(0)
    codes.move(0)
    assert np.array_equal(decoded(blocks, "Q3_K"), before)
    assert int(codes.wishes.abs().max()) < HALF


def test_an_expert_that_has_seen_few_tokens_keeps_its_codes() -> None:
    blocks = blocks_of("Q2_K")
    before = decoded(blocks, "Q2_K")
    gradient = np.ones((N_ROWS, N_COLS), np.float32)
    codes = MovingCodes("Q2_K", blocks)
    pulled(codes, gradient, rate=0.1, times=8, free=False)
    assert np.array_equal(decoded(blocks, "Q2_K"), before)
    pulled(codes, gradient, rate=0.1)
    assert not np.array_equal(decoded(blocks, "Q2_K"), before)


def codes_in(path: Path) -> dict[str, np.ndarray]:
    """Of every matrix in Q4_0, [n_rows, n_cols]."""
    source = open_source(path)
    lattice = lattice_of("Q4_0")
    assert isinstance(lattice, ScalarLattice)
    return {
        spec.name: lattice.unpack(torch.from_numpy(np.array(source.read(spec.name))))
        .codes.numpy()
        .astype(int)
        for spec in source.specs()
        if spec.type == "Q4_0"
    }


def test_moved_codes_are_neighbours_and_worth_it(tmp_path: Path) -> None:
    kept: Result = run(job(tmp_path / "kept.gguf", keep_codes=True))
    plain, stay, moved = codes_in(tiny("Q4_0")), codes_in(tmp_path / "kept.gguf"), codes_in(polished())
    assert all(np.array_equal(stay[name], plain[name]) for name in plain)
    steps = {name: np.abs(moved[name] - plain[name]) for name in plain}
    assert max(found.max() for found in steps.values()) == 1
    share = np.concatenate([found.ravel() for name, found in steps.items() if name.startswith("blk.")]).mean()
    assert 1e-4 < share < 0.02
    assert not steps["token_embd.weight"].any()
    assert open_source(polished()).metadata.value("quantmill.polish.kld_after") < kept.after.kld.value
