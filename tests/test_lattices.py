"""Every legal code and scale goes into a block and comes out again, and llama.cpp reads from it what we meant."""

import numpy as np
import pytest
import torch

from quantmill.qkernels import QuantizeError
from quantmill.qkernels.lattices import GRIDS, LATTICES, Choice, GridChoice, lattice_of
from quantmill.qkernels.types import TYPES
from tests.support import oracle

N_ROWS, N_BLOCKS = 7, 3


def random_choice(lattice, seed=0):
    """Any legal codes and scales, the ends of every range included."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high, *shape):
        numbers = torch.randint(low, high + 1, shape, generator=generator)
        numbers.view(-1)[0], numbers.view(-1)[-1] = low, high
        return numbers

    n_groups = lattice.block // lattice.group
    halves = torch.randn(2, N_ROWS, N_BLOCKS, generator=generator).half().float()
    choice = Choice(whole(0, len(lattice.levels) - 1, N_ROWS, N_BLOCKS * lattice.block).to(torch.uint8))
    if lattice.scale_table is None:
        choice.d = halves[0]
    else:
        # the ends of E8M0 overflow float32 once they are multiplied
        ends = (60, 180) if lattice.name == "MXFP4" else (0, len(lattice.scale_table) - 1)
        choice.scales = whole(*ends, N_ROWS, N_BLOCKS, n_groups).to(torch.int16)
    if lattice.has_min:
        choice.dmin = halves[1]
    if lattice.whole is not None:
        choice.scales = whole(*lattice.whole.scale_range, N_ROWS, N_BLOCKS, n_groups).to(torch.int16)
        if lattice.whole.min_range is not None:
            choice.mins = whole(*lattice.whole.min_range, N_ROWS, N_BLOCKS, n_groups).to(torch.int16)
    return choice


@pytest.mark.parametrize("name", LATTICES)
def test_the_oracle_decodes_what_was_chosen(name):
    lattice = LATTICES[name]
    choice = random_choice(lattice)
    blocks = lattice.pack(choice)
    assert blocks.shape == (N_ROWS, TYPES[name].row_bytes(N_BLOCKS * lattice.block))
    decoded = oracle.dequantize(blocks.numpy(), name)
    assert np.array_equal(decoded, lattice.decode(choice).numpy())


@pytest.mark.parametrize("name", LATTICES)
def test_choices_come_back(name):
    lattice = LATTICES[name]
    choice = random_choice(lattice, 1)
    back = lattice.unpack(lattice.pack(choice))
    for part in ("codes", "d", "dmin", "scales", "mins"):
        before, after = getattr(choice, part), getattr(back, part)
        assert (before is None) == (after is None), part
        assert before is None or torch.equal(before, after), part


@pytest.mark.parametrize("name", LATTICES)
def test_blocks_of_llama_cpp_come_back(name):
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((5, 2 * max(64, TYPES[name].block))).astype(np.float32)
    blocks = torch.from_numpy(oracle.quantize(rows, name, np.ones(rows.shape[1], np.float32)))
    assert torch.equal(lattice_of(name).pack(lattice_of(name).unpack(blocks)), blocks)


def test_codes_without_a_level_are_refused():
    blocks = torch.full((1, TYPES["TQ2_0"].bytes), 255, dtype=torch.uint8)
    with pytest.raises(QuantizeError, match="never writes"):
        lattice_of("TQ2_0").unpack(blocks)


def test_unknown_types_are_refused():
    with pytest.raises(QuantizeError, match="F16"):
        lattice_of("F16")


def random_grid_choice(lattice, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def whole(high, *shape):
        numbers = torch.randint(0, high + 1, shape, generator=generator)
        numbers.view(-1)[0], numbers.view(-1)[-1] = 0, high
        return numbers

    n_cols = N_BLOCKS * lattice.block
    entries = whole(len(lattice.grid(torch.device("cpu"))) - 1, N_ROWS, n_cols // lattice.dim)
    negative = down = None
    if lattice.shared:
        down = (whole(1, N_ROWS, n_cols // (8 * lattice.shared)) == 1).repeat_interleave(lattice.shared, 1)
    else:
        signs = whole(1, N_ROWS, n_cols // 8, 8)
        if lattice.even:
            signs[..., 7] = signs[..., :7].sum(-1) % 2
        negative = (signs == 1).flatten(1)
    scales = 2 * whole(lattice.last // 2, N_ROWS, N_BLOCKS, lattice.block // lattice.group) + 1
    d = torch.randn(N_ROWS, N_BLOCKS, generator=generator).half().float() * lattice.unit
    return GridChoice(entries.to(torch.int16), negative, down, scales.to(torch.int16), d)


@pytest.mark.parametrize("name", GRIDS)
def test_the_oracle_decodes_chosen_entries(name):
    lattice = GRIDS[name]
    choice = random_grid_choice(lattice)
    blocks = lattice.pack(choice)
    assert blocks.shape == (N_ROWS, TYPES[name].row_bytes(N_BLOCKS * lattice.block))
    assert np.array_equal(oracle.dequantize(blocks.numpy(), name), lattice.decode(choice).numpy())
    back = lattice.unpack(blocks)
    for part in ("entries", "negative", "down", "scales", "d"):
        before, after = getattr(choice, part), getattr(back, part)
        assert (before is None) == (after is None), part
        assert before is None or torch.equal(before, after), part


@pytest.mark.parametrize("name", GRIDS)
def test_entries_of_llama_cpp_come_back(name):
    rows = np.random.default_rng(2).standard_normal((5, 512)).astype(np.float32)
    blocks = torch.from_numpy(oracle.quantize(rows, name, np.ones(512, np.float32)))
    assert torch.equal(GRIDS[name].pack(GRIDS[name].unpack(blocks)), blocks)


def test_every_type_that_loses_anything_has_a_lattice():
    coded = {name for name, row in TYPES.items() if row.family != "plain"}
    assert coded == set(LATTICES) | set(GRIDS)
