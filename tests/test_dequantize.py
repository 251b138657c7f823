"""Decoded values against llama.cpp's and gguf's own decoders, bit for bit, on blocks of random bytes."""

import gguf
import numpy as np
import pytest
import torch

from quantmill.qkernels.decode import DECODERS, dequantize
from quantmill.qkernels.types import TYPES, QuantizeError
from tests.support import oracle

# gguf 0.19 has no decoder for these
NOT_IN_GGUF = {"Q1_0", "Q2_0"}


def random_blocks(type: str, n_rows: int, n_blocks: int) -> np.ndarray:
    rng = np.random.default_rng(TYPES[type].id)
    return rng.integers(0, 256, (n_rows, n_blocks * TYPES[type].bytes), np.uint8)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, signs of zero included; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("type", sorted(set(TYPES) - {"F32"}))
def test_equals_ggml(type):
    blocks = random_blocks(type, 96, 8)
    assert_same_bits(dequantize(blocks, type), oracle.dequantize(blocks, type))


@pytest.mark.parametrize("type", sorted(set(TYPES) - NOT_IN_GGUF))
def test_equals_gguf(type):
    blocks = random_blocks(type, 96, 8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(TYPES[type].id))
    assert_same_bits(dequantize(blocks, type), expected)


@pytest.mark.parametrize("type", sorted(TYPES))
def test_layout_fills_the_block(type):
    layout, _ = DECODERS[type]
    assert sum(layout.values()) == TYPES[type].bytes
    if type != "F32":
        assert oracle.type_traits(type)[1:] == (TYPES[type].block, TYPES[type].bytes)


def test_every_scale_byte_of_nvfp4_and_mxfp4():
    mxfp4 = np.concatenate(
        [np.arange(256, dtype=np.uint8)[:, None], np.tile(np.arange(16, dtype=np.uint8) * 17, (256, 1))], 1
    )
    assert_same_bits(dequantize(mxfp4, "MXFP4"), oracle.dequantize(mxfp4, "MXFP4"))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1)
    nvfp4 = np.concatenate([scales, np.full((256, 32), 0x5A, np.uint8)], 1)
    assert_same_bits(dequantize(nvfp4, "NVFP4"), oracle.dequantize(nvfp4, "NVFP4"))


@pytest.mark.parametrize("type", ["Q4_K", "IQ2_XXS", "F16"])
def test_shapes_and_devices(type):
    blocks = random_blocks(type, 6, 2)
    expected = dequantize(blocks, type)
    stacked = dequantize(torch.from_numpy(blocks).view(2, 3, -1), type, device="cpu")
    assert stacked.shape == (2, 3, 2 * TYPES[type].block)
    assert_same_bits(stacked.view(6, -1).numpy(), expected)
    # every other row, not contiguous, and a read-only array, as a memory map is
    assert_same_bits(dequantize(torch.from_numpy(blocks)[::2], type).numpy(), expected[::2])
    blocks.flags.writeable = False
    assert_same_bits(dequantize(blocks, type), expected)


def test_chunks_do_not_change_values():
    blocks = random_blocks("Q6_K", 1, 3000)  # three chunks
    assert_same_bits(dequantize(blocks, "Q6_K"), oracle.dequantize(blocks, "Q6_K"))


@pytest.mark.parametrize("shape", [(0, 144), (3, 0)])
def test_nothing_decodes_to_nothing(shape):
    assert dequantize(np.zeros(shape, np.uint8), "Q4_K").shape == (shape[0], shape[1] // 144 * 256)


@pytest.mark.parametrize(
    ("blocks", "type", "message"),
    [
        (np.zeros((2, 145), np.uint8), "Q4_K", "144 bytes"),
        (np.zeros((2, 144), np.float32), "Q4_K", "must be uint8"),
        (np.zeros((2, 144), np.uint8), "Q4_X", "unknown type 'Q4_X'"),
        (np.zeros((), np.uint8), "Q4_K", "144 bytes"),
    ],
)
def test_refuses(blocks, type, message):
    with pytest.raises(QuantizeError, match=message):
        dequantize(blocks, type)
