"""Decoded values against llama.cpp's and gguf's own decoders, bit for bit, on random bytes, on all engines."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from quantmill.qkernels import dequantize
from quantmill.qkernels.decode import small
from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.lanes import torch_decode
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.encoder import constants
from quantmill.qkernels.types import CHECKPOINT_TYPES, TYPES, QuantizeError, readable_type
from tests.support import oracle
from tests.support.in_triton import interpreted

QUANTIZED = sorted(name for name, type in TYPES.items() if type.family != "plain")
DECODED = [*QUANTIZED, *CHECKPOINT_TYPES]
# gguf 0.19 has no decoder for these
NOT_IN_GGUF = {"Q1_0", "Q2_0"}
INTERPRETER = Path(__file__).parent / "support" / "interpret_triton_decoders.py"


def random_blocks(type: str, n_rows: int, n_blocks: int) -> np.ndarray:
    row = readable_type(type)
    rng = np.random.default_rng(abs(row.id))
    return rng.integers(0, 256, (n_rows, n_blocks * row.bytes), np.uint8)


FLOATS = {"FP8_E4M3": torch.float8_e4m3fn, "FP8_E5M2": torch.float8_e5m2}


def exact(blocks: np.ndarray, type: str) -> np.ndarray:
    """ggml's float32; of blocks that only checkpoints have, torch's casts and one product by definition."""
    if type in TYPES:
        return oracle.dequantize(blocks, type)
    fields = blocks.reshape(*blocks.shape[:-1], -1, CHECKPOINT_TYPES[type].bytes)
    scales, codes = np.ascontiguousarray(fields[..., :4]).view("<f4"), np.ascontiguousarray(fields[..., 4:])
    if type in FLOATS:
        numbers = torch.from_numpy(codes).view(FLOATS[type]).float().numpy()
    else:
        zeros, codes = codes[..., :2].copy().view("<u2").astype(np.int64), codes[..., 2:]
        pairs = np.stack((codes & 15, codes >> 4), -1).reshape(*codes.shape[:-1], -1)
        numbers = ((pairs if type == "INT4" else codes) - zeros).astype(np.float32)
    with np.errstate(all="ignore"):
        return (numbers * scales).reshape(*blocks.shape[:-1], -1)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, signs of zero included; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype
    words = np.uint32 if expected.dtype == np.float32 else np.uint16
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual.view(words)[~nan], expected.view(words)[~nan])


def halves(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


@pytest.mark.parametrize("type", sorted(set(TYPES) - {"F32"}))
def test_equals_ggml(type):
    blocks = random_blocks(type, 96, 8)
    assert_same_bits(dequantize(blocks, type), oracle.dequantize(blocks, type))


@pytest.mark.parametrize("type", CHECKPOINT_TYPES)
def test_blocks_of_checkpoints(type):
    blocks = random_blocks(type, 96, 8)
    assert_same_bits(dequantize(blocks, type), exact(blocks, type))


@pytest.mark.parametrize("type", sorted(set(TYPES) - NOT_IN_GGUF))
def test_equals_gguf(type):
    blocks = random_blocks(type, 96, 8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(TYPES[type].id))
    assert_same_bits(dequantize(blocks, type), expected)


@pytest.mark.parametrize("type", [*sorted(TYPES), *CHECKPOINT_TYPES])
def test_halves_are_the_nearest(type):
    """numpy's and torch's own roundings of ggml's values, sub-normal and infinite ones included."""
    blocks = random_blocks(type, 40, 8)
    numbers = exact(blocks, type) if type != "F32" else blocks.view("<f4")
    assert_same_bits(dequantize(blocks, type, to="F16"), halves(numbers))
    brain = torch.from_numpy(numbers).to(torch.bfloat16)
    found = torch.from_numpy(dequantize(blocks, type, to="BF16")).view(torch.bfloat16)
    assert torch.equal(found.nan_to_num(1.5), brain.nan_to_num(1.5))
    tensor = dequantize(torch.from_numpy(blocks), type, to="BF16")
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor.nan_to_num(1.5), brain.nan_to_num(1.5))


@pytest.mark.parametrize("type", DECODED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_torch_operations(type, dtype):
    """What a device without Triton does, here on the CPU."""
    blocks = random_blocks(type, 1, 96).reshape(96, -1)
    row = readable_type(type)
    out = torch.full((96, row.block), float("nan"), dtype=dtype)
    torch_decode.decode(row, decoders()[type], torch.from_numpy(blocks), out)
    expected = torch.from_numpy(exact(blocks, type)).to(dtype)
    if dtype == torch.float32:
        assert_same_bits(out.numpy(), expected.numpy())
    assert torch.equal(out.nan_to_num(1.5), expected.nan_to_num(1.5))


@pytest.fixture(scope="module")
def by_triton(tmp_path_factory) -> dict[str, np.ndarray]:
    """What Triton's interpreter makes of some blocks; triton.jit decides to interpret when it is imported."""
    folder = tmp_path_factory.mktemp("triton")
    blocks, results = folder / "blocks.npz", folder / "results.npz"
    np.savez(blocks, **{type: random_blocks(type, 1, 41).reshape(41, -1) for type in DECODED})
    interpreted(str(INTERPRETER), str(blocks), str(results))
    with np.load(results) as stored:
        return dict(stored)


@pytest.mark.parametrize("type", DECODED)
def test_triton(type, by_triton):
    """bfloat16 is left to the compiled kernel (test_triton_compile.py): the interpreter cuts it off."""
    expected = exact(random_blocks(type, 1, 41).reshape(41, -1), type)
    assert_same_bits(by_triton[f"{type}-float32"], expected)
    assert_same_bits(by_triton[f"{type}-float16"], halves(expected))


def test_every_quantized_type_has_a_decoder():
    assert set(decoders()) == set(DECODED)
    for name, decoder in decoders().items():
        assert readable_type(name).block % (16 * decoder.lanes) == 0
    for name in QUANTIZED:
        assert oracle.type_traits(name)[1:] == (TYPES[name].block, TYPES[name].bytes)


@pytest.mark.parametrize(
    ("tables", "numbers"),
    [({}, {"N": 1}), ({"values": constants(1)}, {}), ({}, {})],
)
def test_a_decoder_is_bound_by_name(tables, numbers):
    """Only q4_0 takes nothing but blocks and numbers."""
    from quantmill.qkernels.decode.codebook import iq4_nl

    program = small.q4_0 if tables or numbers else iq4_nl
    with pytest.raises(TypeError, match=f"{program.__name__}.*cannot be called with"):
        Decoder(program, tables=tables, constants=numbers)


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
    assert_same_bits(dequantize(blocks[::2], type), expected[::2])
    blocks.flags.writeable = False
    assert_same_bits(dequantize(blocks, type), expected)


def test_writes_where_it_is_told():
    blocks = random_blocks("Q4_K", 70, 3)
    kept = np.full((70, 768), 7, np.float32)
    assert dequantize(blocks, "Q4_K", out=kept) is kept
    assert_same_bits(kept, oracle.dequantize(blocks, "Q4_K"))
    tensor = torch.full((70, 768), 7.0)
    assert dequantize(torch.from_numpy(blocks), "Q4_K", out=tensor) is tensor
    assert_same_bits(tensor.numpy(), kept)


@pytest.mark.parametrize("n_blocks", [1, 15, 16, 31, 32, 33, 63, 3000])
def test_tiles_and_threads_do_not_change_values(n_blocks):
    blocks = random_blocks("Q6_K", 1, n_blocks)
    expected = oracle.dequantize(blocks, "Q6_K")
    for threads in (1, 3):
        assert_same_bits(dequantize(blocks, "Q6_K", threads=threads), expected)


@pytest.mark.parametrize("shape", [(0, 144), (3, 0)])
def test_nothing_decodes_to_nothing(shape):
    assert dequantize(np.zeros(shape, np.uint8), "Q4_K").shape == (shape[0], shape[1] // 144 * 256)


def test_decoding_on_the_cpu_needs_no_torch():
    code = (
        "import sys, numpy as np; from quantmill.qkernels import dequantize, to_float32;"
        "raw = np.zeros((40, 288), np.uint8); dequantize(raw, 'Q4_K'); to_float32(raw, 'Q4_K');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_refuses_to_decode_to_blocks():
    with pytest.raises(QuantizeError, match="cannot decode to 'Q8_0'; choose F32, F16, BF16"):
        dequantize(np.zeros((2, 144), np.uint8), "Q4_K", to="Q8_0")
