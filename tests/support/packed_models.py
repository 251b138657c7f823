"""Tiny models whose matrices are stored packed, in every form that checkpoints have (packing.py)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.convert_models import (
    MODELS,
    edit,
    shapes_of,
    tensors,
    write_model,
    write_shards,
    write_sparse,
)
from tests.support.packing import (
    Pack,
    Random,
    Stored,
    bitnet,
    fp8,
    fp8_mistral,
    fp8_modelopt,
    gptq,
    int8,
    mixed_modelopt,
    mxfp4,
    nvfp4_compressed_tensors,
    nvfp4_modelopt,
    packed_int,
)


@dataclass(frozen=True)
class PackedModel:
    """base: the model whose projections are packed by `pack`, given a weight's name without ".weight" and its shape.
    settings: config.json's quantization_config. options: of llama.cpp's converter; none: it does not read this."""

    base: str
    settings: dict[str, Any]
    pack: Pack
    options: tuple[str, ...] | None = ("--outtype", "f32")
    config: dict[str, Any] = field(default_factory=dict)


def compressed(format: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


def _gptq_settings(bits: int, **settings: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": False, **settings}


_INT = {"type": "int", "symmetric": True}
_FP8 = {"type": "float", "num_bits": 8, "symmetric": True}
_FP4 = {"type": "float", "num_bits": 4, "symmetric": True}
_W4A16 = {
    f"model.layers.{i}.mlp.{part}_proj": {"quant_algo": "W4A16_NVFP4"}
    for i in range(2)
    for part in ("up", "down")
}
PACKED: Mapping[str, PackedModel] = {
    "fp8-blocks-of-powers": PackedModel(
        "qwen3",
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        fp8(".weight_scale_inv", (128, 128), "F8_E8M0"),
    ),
    "fp8-cut-blocks": PackedModel(
        "qwen3",
        {"quant_method": "fp8", "weight_block_size": [96, 64]},
        fp8(".weight_scale_inv", (96, 64)),
    ),
    "fp8-tensor": PackedModel("qwen3", {"quant_method": "fp8"}, fp8(".weight_scale_inv", None)),
    "fp8-mistral": PackedModel("mistral", {"quant_method": "fp8"}, fp8_mistral),
    "fp8-as-q8": PackedModel(
        "mistral", {"quant_method": "fp8"}, fp8_mistral, ("--outtype", "bf16", "--fp8-as-q8")
    ),
    "modelopt-fp8": PackedModel("llama", {"quant_method": "modelopt", "quant_algo": "FP8"}, fp8_modelopt),
    "float-blocks": PackedModel(
        "llama",
        compressed("float-quantized", strategy="block", block_structure=[128, 128], **_FP8),
        fp8(".weight_scale", (128, 128)),
    ),
    "float-tensor": PackedModel(
        "llama", compressed("float-quantized", strategy="tensor", **_FP8), fp8(".weight_scale", None), None
    ),
    "naive-float": PackedModel(
        "llama", compressed("naive-quantized", strategy="channel", **_FP8), fp8(".weight_scale", (1, 1 << 20))
    ),
    "mxfp8": PackedModel(
        "qwen3",
        compressed("mxfp8-quantized", strategy="group", group_size=32, **_FP8),
        lambda random, name, shape: {
            key: ("U8" if kind == "F8_E8M0" else kind, values)
            for key, (kind, values) in fp8(".weight_scale", (1, 32), "F8_E8M0")(random, name, shape).items()
        },
        None,
    ),
    "mxfp4-deepseek-v4": PackedModel(
        "qwen3",
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        lambda random, name, shape: (
            mxfp4(".weight", ".scale", "F8_E8M0") if "mlp" in name else fp8(".scale", (128, 128), "F8_E8M0")
        )(random, name, shape),
        None,
    ),
    "mxfp4-pack": PackedModel(
        "qwen3-moe",
        compressed("mxfp4-pack-quantized", strategy="group", group_size=32, **_FP4),
        mxfp4(".weight_packed", ".weight_scale"),
        None,
    ),
    "nvfp4-modelopt": PackedModel(
        "llama", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4_modelopt
    ),
    "nvfp4-modelopt-experts": PackedModel(
        "qwen3-moe", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4_modelopt
    ),
    "modelopt-mixed": PackedModel(
        "qwen3",
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": _W4A16},
        mixed_modelopt,
    ),
    "nvfp4-pack": PackedModel(
        "qwen3-moe",
        compressed("nvfp4-pack-quantized", strategy="tensor_group", group_size=16, **_FP4),
        nvfp4_compressed_tensors,
    ),
    "int4-g32": PackedModel(
        "qwen3-moe",
        compressed("pack-quantized", strategy="group", group_size=32, num_bits=4, **_INT),
        packed_int(4, 32),
    ),
    "int4-g32-not-halves": PackedModel(
        "llama",
        compressed("pack-quantized", strategy="group", group_size=32, num_bits=4, **_INT),
        packed_int(4, 32, exact=False),
    ),
    "int4-g128-zeros": PackedModel(
        "qwen3",
        compressed(
            "pack-quantized", strategy="group", group_size=128, num_bits=4, type="int", symmetric=False
        ),
        packed_int(4, 128, zeros=True),
    ),
    "int8-g64": PackedModel(
        "llama",
        compressed("pack-quantized", strategy="group", group_size=64, num_bits=8, **_INT),
        packed_int(8, 64),
    ),
    "int3-rows": PackedModel(
        "llama",
        compressed("pack-quantized", strategy="channel", num_bits=3, **_INT),
        packed_int(3, None),
        None,
    ),
    "int4-reordered": PackedModel(
        "llama",
        compressed("pack-quantized", strategy="group", group_size=32, num_bits=4, actorder="group", **_INT),
        packed_int(4, 32, order=True),
        None,
    ),
    "int-channel": PackedModel(
        "llama", compressed("int-quantized", strategy="channel", num_bits=8, **_INT), int8("channel")
    ),
    "int-groups-zeros": PackedModel(
        "llama",
        compressed("int-quantized", strategy="group", group_size=64, num_bits=8, type="int", symmetric=False),
        int8("group", zeros=True),
        None,
    ),
    "gptq-4": PackedModel("llama", _gptq_settings(4), gptq(4, 32)),
    "gptq-4-symmetric": PackedModel("qwen3-moe", _gptq_settings(4, sym=True), gptq(4, 128, symmetric=True)),
    "gptq-4-reordered": PackedModel("qwen3", _gptq_settings(4, desc_act=True), gptq(4, 64, order=True)),
    "gptq-8": PackedModel("llama", _gptq_settings(8), gptq(8, 64)),
    "gptq-2-version-2": PackedModel("llama", _gptq_settings(2, checkpoint_format="gptq_v2"), gptq(2, 64)),
    "gptq-mixed": PackedModel(
        "llama",
        _gptq_settings(4, dynamic={r"+:.*\.mlp\..*": {"bits": 8, "group_size": 64}}),
        lambda random, name, shape: gptq(*((8, 64) if "mlp" in name else (4, 32)))(random, name, shape),
        None,
    ),
    "gptq-3": PackedModel("llama", _gptq_settings(3), gptq(3, 64), None),
    # lazily llama.cpp's converter fails on it
    "bitnet": PackedModel("llama", {"quant_method": "bitnet"}, bitnet, ("--outtype", "f32", "--no-lazy")),
    "bitnet-auto": PackedModel(
        "llama", {"quant_method": "bitnet", "linear_class": "autobitlinear"}, bitnet, None
    ),
}


def packed_tensors(name: str) -> Stored:
    """What the checkpoint stores, in the order of names."""
    return dict(_packed_tensors(name))


@functools.cache
def _packed_tensors(name: str) -> Stored:
    model = PACKED[name]
    random = Random(sum(name.encode()))
    found: Stored = {}
    for tensor, stored in tensors(model.base).items():
        shape = tuple(shapes_of(model.base)[tensor])
        if tensor.endswith("_proj.weight"):
            found |= model.pack(random, tensor.removesuffix(".weight"), (shape[0], shape[1]))
        else:
            found[tensor] = stored
    return dict(sorted(found.items()))


# Runs quantmill and prints its peak memory in MiB, mapped pages of files included, and its CPU seconds. Linux tells it
# of this program alone; getrusage remembers what started it.
PEAK = """
import sys, time
from pathlib import Path
from quantmill import cli
code = cli.main(sys.argv[1:])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024, round(time.process_time(), 1))
raise SystemExit(code)
"""


def write_zeros(name: str, directory: Path, gigabytes: float) -> int:
    """A checkpoint of matrices of Llama 8B's shapes, all zeros, and as many layers as make the size: a hole in a file,
    read as any other. Returns the bytes of its tensors."""
    model, random = PACKED[name], Random(0)
    hidden, inner, narrow = 4096, 14336, 1024
    shapes = {
        "self_attn.q": (hidden, hidden),
        "self_attn.k": (narrow, hidden),
        "self_attn.v": (narrow, hidden),
    }
    shapes |= {"self_attn.o": (hidden, hidden), "mlp.gate": (inner, hidden), "mlp.up": (inner, hidden)}
    layer: Stored = {}
    for part, shape in {**shapes, "mlp.down": (hidden, inner)}.items():
        layer |= model.pack(random, f"{part}_proj", shape)
    n_layers = max(1, round(gigabytes * 1e9 / sum(values.nbytes for _, values in layer.values())))
    write_model("llama", directory)
    config: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": 32}
    config |= {"num_key_value_heads": 8, "num_hidden_layers": n_layers, "quantization_config": model.settings}
    edit(directory / "config.json", **config)
    stored: dict[str, tuple[str, tuple[int, ...]]] = {}
    stored |= {f"{part}.weight": ("BF16", (512, hidden)) for part in ("model.embed_tokens", "lm_head")}
    stored["model.norm.weight"] = ("BF16", (hidden,))
    kept = {}
    for i in range(n_layers):
        prefix = f"model.layers.{i}."
        for part, (dtype, values) in layer.items():
            stored[prefix + part] = (dtype, values.shape)
            if values.size <= 2:  # a stated shape, a factor
                kept[prefix + part] = values
        stored |= {
            f"{prefix}{norm}_layernorm.weight": ("BF16", (hidden,)) for norm in ("input", "post_attention")
        }
    return write_sparse(directory / "model.safetensors", stored, kept)


def write_packed(name: str, directory: Path) -> Path:
    """Write the model `name` into `directory` and return it."""
    model = PACKED[name]
    write_model(model.base, directory)
    edit(directory / "config.json", quantization_config=model.settings)
    for file in directory.glob("model*"):
        file.unlink()
    write_shards(directory, packed_tensors(name), MODELS[model.base].shards)
    return directory
