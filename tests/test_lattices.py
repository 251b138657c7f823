"""Every legal code and scale goes into a block and comes out again, and llama.cpp reads from it what we meant."""

import numpy as np
import pytest
import torch

from quantmill.qkernels import QuantizeError
from quantmill.qkernels.lattices import LATTICES, Choice, lattice_of
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
