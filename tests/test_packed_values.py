"""Values of packed weights against the libraries that define them, and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantmill.gguf_io.convert.families import mimo_v2_5
from quantmill.gguf_io.convert.storage.fp8 import fp8_in_ranks
from quantmill.gguf_io.convert.storage.scales import scales_of
from quantmill.gguf_io.safetensors import StoredTensor, open_shards
from tests.support.packed_models import PACKED, packed_tensors

COMPRESSED = [
    name
    for name, model in PACKED.items()
    if model.settings["quant_method"] == "compressed-tensors" and name != "int4-reordered"
]


@pytest.mark.parametrize("name", COMPRESSED)
def test_values_are_compressed_tensors(name, opened, packed):
    """Some tensors of each kind against the library's own decompression, in float32."""
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    settings = PACKED[name].settings
    scheme = library.quantization.QuantizationScheme(targets=["Linear"], **_scheme(settings))
    compressor = library.compressors.BaseCompressor.get_value_from_registry(settings["format"])
    stored = {
        key: value for file in packed(name).glob("*.safetensors") for key, value in load_file(file).items()
    }
    source = opened(name)
    modules = sorted({key.rpartition(".")[0] for key in stored if key.endswith(".weight_scale")})
    assert len(modules) > 10
    for module in modules[::3]:
        state = {
            key.removeprefix(f"{module}."): value
            for key, value in stored.items()
            if key.startswith(f"{module}.")
        }
        state = {
            key: value.float() if value.dtype == torch.bfloat16 else value for key, value in state.items()
        }
        expected = _decompressed(compressor, state, scheme)
        found = source._readers[f"{module}.weight"].values(slice(None), slice(None))
        if (
            "nvfp4" in name
        ):  # the library divides by the factor where we multiply with its reciprocal, as llama.cpp
            np.testing.assert_allclose(found, expected, rtol=3e-7)
        else:
            assert np.array_equal(found, expected), module


def _scheme(settings):
    weights = dict(settings["config_groups"]["group_0"]["weights"])
    weights["scale_dtype"] = torch.uint8 if settings["format"].startswith("mx") else None
    return {"weights": {**weights, "observer": "minmax"}}


def _decompressed(compressor, state, scheme):
    """In float32; the library computes NVFP4 in bfloat16 unless it is told otherwise."""
    if "weight_global_scale" not in state:
        return compressor.decompress(state, scheme)["weight"].float().numpy()
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    n_rows, half = state["weight_packed"].shape
    codes = unpack_fp4_from_uint8(state["weight_packed"], n_rows, 2 * half, dtype=torch.float32)
    factor, scales = state["weight_global_scale"], state["weight_scale"].float()
    return dequantize(codes, scales, args=scheme.weights, global_scale=factor, dtype=torch.float32).numpy()


def test_columns_in_groups_of_their_own(opened, packed):
    """weight_g_idx, which the library wrote for some years and reads no more: column i has the scale it names."""
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason="compressed-tensors is not installed"
    )
    stored = load_file(packed("int4-reordered") / "model.safetensors")
    source = opened("int4-reordered")
    for key, words in stored.items():
        if key.endswith("_packed"):
            base = key.removesuffix("_packed")
            codes = helpers.unpack_from_int32(words, 4, torch.Size(stored[f"{base}_shape"].tolist()))
            expected = codes.float() * stored[f"{base}_scale"].float()[:, stored[f"{base}_g_idx"].long()]
            assert np.array_equal(source._readers[base].values(slice(None), slice(None)), expected.numpy())


def test_values_are_bitnets(opened, packed):
    """transformers' unpacking, and BitLinear's division by the scale or AutoBitLinear's multiplication."""
    from transformers.integrations.bitnet import unpack_weights

    for name in ("bitnet", "bitnet-auto"):
        stored = load_file(packed(name) / "model.safetensors")
        source = opened(name)
        for key, scale in stored.items():
            if key.endswith(".weight_scale"):
                weight = key.removesuffix("_scale")
                with torch.compiler.set_stance(
                    "force_eager"
                ):  # compiling it takes longer than all of this file
                    digits = unpack_weights(stored[weight], torch.float32)
                expected = digits / scale.float() if name == "bitnet" else digits * scale.float()
                found = source._readers[weight].values(slice(None), slice(None))
                assert np.array_equal(found, expected.numpy()), key


def test_values_are_transformers_mxfp4(opened, packed):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored = load_file(packed("mxfp4-deepseek-v4") / "model.safetensors")
    source = opened("mxfp4-deepseek-v4")
    for key, codes in stored.items():
        if codes.dtype == torch.int8:
            blocks = codes.view(torch.uint8).view(1, codes.shape[0], -1, 16)
            exponents = stored[key.replace(".weight", ".scale")].view(torch.uint8).unsqueeze(0)
            # transformers gives the experts transposed
            expected = convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)[0].T.numpy()
            assert np.array_equal(source._readers[key].values(slice(None), slice(None)), expected), key


@pytest.mark.parametrize("name", ["fp8-blocks-of-powers", "fp8-cut-blocks", "fp8-mistral", "modelopt-fp8"])
def test_values_of_fp8_are_torchs(name, opened, packed):
    """torch's casts, and scales repeated over their blocks."""
    stored = load_file(packed(name) / "model.safetensors")
    source = opened(name)
    block = PACKED[name].settings.get("weight_block_size") or [1 << 20, 1 << 20]
    checked = 0
    for key, codes in stored.items():
        if codes.dtype == torch.float8_e4m3fn:
            base = key.removesuffix("weight")
            ends = ("weight_scale_inv", "qscale_weight", "weight_scale")
            scale = next(stored[base + end] for end in ends if base + end in stored).float()
            scale = scale.view(1, 1) if scale.dim() < 2 else scale
            for dimension, size in enumerate(block):
                scale = scale.repeat_interleave(min(size, 1024), dimension)
            expected = codes.float() * scale[: codes.shape[0], : codes.shape[1]]
            assert np.array_equal(source._readers[key].values(slice(None), slice(None)), expected.numpy()), (
                key
            )
            checked += 1
    assert checked == 14


@pytest.mark.parametrize("ranks", [4, 8])
def test_queries_keys_and_values_in_ranks(ranks, tmp_path):
    """MiMo V2.5: each rank's are computed by themselves, and all queries come first."""
    sizes, width = (
        (64 * ranks, 32 * ranks, 16 * ranks),
        256,
    )  # half as many heads of keys, and of values of 32
    random = np.random.RandomState(0)
    parts = [[random.standard_normal((size // ranks, width)) for size in sizes] for _ in range(ranks)]
    codes = [torch.from_numpy(np.concatenate(part)).to(torch.float8_e4m3fn) for part in parts]
    down = -(-sum(sizes) // ranks // 128)
    scales = torch.from_numpy(random.uniform(0.5, 2, (ranks, down, 2)).astype(np.float32))
    name = "model.layers.0.self_attn.qkv_proj.weight"
    tensors = {name: torch.cat(codes), f"{name}_scale_inv": scales.flatten(0, 1)}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = open_shards(tmp_path, lambda line: None)
    config = {
        "num_attention_heads": ranks,
        "head_dim": 64,
        "v_head_dim": 32,
        **mimo_v2_5.FAMILY.of_stored(stored),
    }
    assert config["qkv_ranks"] == ranks
    form = fp8_in_ranks(".weight", ".weight_scale_inv", (128, 128), ranks)
    found = form.make(form.found(name, stored)).values(mimo_v2_5.unranked(config, 112 * ranks), slice(None))
    each = [
        code.float() * scale.repeat_interleave(128, 0)[: len(code)].repeat_interleave(128, 1)
        for code, scale in zip(codes, scales, strict=True)
    ]
    split = zip(*(values.split([size // ranks for size in sizes]) for values in each), strict=True)
    np.testing.assert_array_equal(found, torch.cat([torch.cat(kind) for kind in split]).numpy())


STACKS = {
    "one for all": ((3, 10, 8), (), None),
    "one for each matrix": ((3, 10, 8), (3,), None),
    "one for each matrix, dimensions kept": ((3, 10, 8), (3, 1, 1), None),
    "rows": ((3, 10, 8), (3, 10, 1), None),
    "rows of one matrix": ((10, 8), (10,), None),
    "blocks cut off": ((3, 10, 8), (3, 3, 2), (4, 6)),
    "ModelOpt's dimensions": ((10, 8), (3, 1, 2, 1), (4, 6)),
}


@pytest.mark.parametrize("case", STACKS)
def test_a_scale_serves_its_block(case, tmp_path):
    """Also in stacks of matrices, where blocks end with each."""
    shape, scale_shape, block = STACKS[case]
    numbers = np.arange(1, 1 + int(np.prod(scale_shape)), dtype=np.float32).reshape(scale_shape)
    (tmp_path / "numbers").write_bytes(numbers.tobytes())
    codes = StoredTensor("codes", "F8_E4M3", shape, tmp_path / "codes", 0)
    found = scales_of(codes, shape, StoredTensor("s", "F32", scale_shape, tmp_path / "numbers", 0), (block,))
    down, across = block or (1, 8)
    if block:
        grid = numbers.reshape(*shape[:-2], -(-shape[-2] // down), -(-shape[-1] // across))
        expected = grid.repeat(down, -2)[..., : shape[-2], :].repeat(across, -1)[..., : shape[-1]]
    else:
        expected = numbers.reshape(*scale_shape, *(1,) * (len(shape) - len(scale_shape)))
    expected = np.broadcast_to(expected, shape).reshape(-1, shape[-1])
    np.testing.assert_array_equal(found.spread(slice(None), slice(None)), expected)
    np.testing.assert_array_equal(found.spread(slice(3, 9), slice(2, 7)), expected[3:9, 2:7])


@pytest.mark.parametrize("name", [name for name in PACKED if name.startswith("gptq")])
def test_values_of_gptq_follow_its_definition(name, opened):
    """One code at a time, as AutoGPTQ packs them: scale · (code - (zero + 1)), version 2 without the 1."""
    settings = PACKED[name].settings
    offset = settings.get("checkpoint_format") != "gptq_v2"
    source = opened(name)
    stored = {key: values for key, (_, values) in packed_tensors(name).items()}
    random = np.random.default_rng(0)
    for key in [key for key in stored if key.endswith(".qweight")][:6]:
        base = key.removesuffix("qweight")
        bits = 8 if name == "gptq-mixed" and ".mlp." in key else settings["bits"]
        values = source._readers[f"{base}weight"].values(slice(None), slice(None))
        for row, column in random.integers(0, values.shape, (200, 2)).tolist():
            group = stored[f"{base}g_idx"][column]
            code = _code(stored[key][:, row], column, bits)
            zero = _code(stored[f"{base}qzeros"][group], row, bits) + offset
            expected = np.float32(stored[f"{base}scales"][group, row]) * np.float32(code - zero)
            assert values[row, column] == expected


def _code(words, i, bits):
    """Number i of a run of codes, out of one great integer."""
    return int.from_bytes(np.ascontiguousarray(words).tobytes(), "little") >> i * bits & (1 << bits) - 1
