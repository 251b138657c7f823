"""Methods of quantization, as config.json's quantization_config names them: a row for each, with its formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quantmill.gguf_io.convert.storage import fp4
from quantmill.gguf_io.convert.storage.bitnet import ternary
from quantmill.gguf_io.convert.storage.format import Format
from quantmill.gguf_io.convert.storage.fp8 import fp8, fp8_in_ranks
from quantmill.gguf_io.convert.storage.gptq import gptq
from quantmill.gguf_io.convert.storage.packed_integers import packed, signed_bytes
from quantmill.gguf_io.convert.storage.scales import Block
from quantmill.gguf_io.errors import GGUFError

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Packing:
    """How a checkpoint's weights are stored. method: None for floats. formats: the first that a tensor and those beside
    it fit is its. unused: how the names of tensors end that llama.cpp computes without: scales of activations and of
    the cache.
    """

    method: str | None = None
    formats: tuple[Format, ...] = ()
    unused: tuple[str, ...] = ()


def packing_of(config: Settings) -> Packing:
    """What quantization_config says. Raises GGUFError, naming method and format, for one that cannot be read."""
    settings = config.get("quantization_config") or {}
    if not isinstance(settings, Mapping):
        raise GGUFError(f"config.json: quantization_config must be an object, not {settings!r}")
    if not settings:
        return Packing()
    method = settings.get("quant_method")
    formats_of = METHODS.get(method) if isinstance(method, str) else None
    formats = formats_of(settings) if formats_of is not None else ()
    if not formats:
        raise GGUFError(
            f"config.json: the weights are quantized by {method}{_detail(settings)}, which is not supported "
            "(docs/checkpoints.md lists what is); convert the unquantized model"
        )
    ranks = config.get("qkv_ranks", 1)  # of MiMo V2.5
    if ranks > 1:
        formats = (
            fp8_in_ranks(".qkv_proj.weight", ".qkv_proj.weight_scale_inv", (128, 128), ranks),
            *formats,
        )
    return Packing(str(method), formats, UNUSED)


UNUSED = (
    *(".activation_scale", "_activation_scale", ".input_scale", ".k_scale", ".v_scale", ".qscale_act"),
    *(".k_proj.output_scale", ".v_proj.output_scale", ".q_scale", ".input_zero_point", ".input_global_scale"),
)


def _fp8(settings: Settings) -> tuple[Format, ...]:
    """DeepSeek's and transformers' own; Mistral's; DeepSeek-V4's and MiMo V2.5's with their experts in MXFP4."""
    block = _block(settings.get("weight_block_size"))
    fine = ((128, 128) if block is None else block,)
    experts = fp4.MXFP4_OF_MIMO if settings.get("store_dtype") == "mxfp4" else fp4.MXFP4_ROWS
    return (
        fp8("", "_scale_inv", (block,)),
        fp8(".weight", ".qscale_weight", (block,)),
        fp8(".weight", ".scale", fine),
        experts,
    )


def _modelopt(settings: Settings) -> tuple[Format, ...]:
    algorithm = settings.get("quant_algo")
    if algorithm not in (
        "FP8",
        "FP8_PER_CHANNEL_PER_TOKEN",
        "FP8_PB_WO",
        "NVFP4",
        "W4A16_NVFP4",
        "MIXED_PRECISION",
    ):
        return ()
    blocks: tuple[Block | None, ...] = (None, (128, 128))
    return (fp8(".weight", ".weight_scale", blocks), fp4.NVFP4_MODELOPT)


def _gptq(settings: Settings) -> tuple[Format, ...]:
    """`dynamic` (GPTQModel): some modules have other bits; the shapes of a module's tensors tell which."""
    version = settings.get("checkpoint_format") or "gptq"
    dynamic = settings.get("dynamic") or {}
    others = dynamic.values() if isinstance(dynamic, Mapping) else ()
    found = [
        settings.get("bits"),
        *(other["bits"] for other in others if isinstance(other, Mapping) and "bits" in other),
    ]
    if any(bits not in (2, 3, 4, 8) for bits in found) or version not in ("gptq", "gptq_v2"):
        return ()
    return tuple(gptq(bits, 1 if version == "gptq" else 0) for bits in dict.fromkeys(found))


def _bitnet(settings: Settings) -> tuple[Format, ...]:
    return (ternary(settings.get("linear_class") != "autobitlinear"),)


def _compressed_tensors(settings: Settings) -> tuple[Format, ...]:
    """Of a mixture all formats of its groups: the names, types and shapes of a module's tensors tell which is its."""
    sparse = settings.get("sparsity_config") or {}
    if settings.get("transform_config") or (
        isinstance(sparse, Mapping) and sparse.get("format", "dense") != "dense"
    ):
        return ()
    found: list[Format] = []
    for group in _groups(settings):
        weights = group.get("weights")
        if weights is None:  # a group about activations alone
            continue
        format = group.get("format") or settings.get("format")
        make = COMPRESSED_TENSORS.get(format) if isinstance(format, str) else None
        if make is None or not isinstance(weights, Mapping):
            return ()
        found += make(weights)
    return tuple(found)


def _blocks_of(weights: Settings) -> tuple[Block | None, ...] | None:
    """Rows and columns that share a scale, by the strategy; None: an unknown one."""
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy in ("channel", "tensor"):
        return (None,)
    if strategy in ("group", "tensor_group") and type(size) is int and size > 0:
        return ((1, size),)
    if strategy == "block":
        return (_block(weights.get("block_structure")),)
    return None


def _floats(weights: Settings) -> list[Format]:
    blocks = _blocks_of(weights)
    if weights.get("type") == "int":
        return _bytes(weights)
    if blocks is None or weights.get("type") != "float" or weights.get("num_bits", 8) != 8:
        return []
    return [fp8(".weight", ".weight_scale", blocks)]


def _bytes(weights: Settings) -> list[Format]:
    blocks = _blocks_of(weights)
    whole = weights.get("type", "int") == "int" and type(weights.get("num_bits")) is int
    return [signed_bytes(blocks)] if blocks is not None and whole and weights["num_bits"] <= 8 else []


def _packed(weights: Settings) -> list[Format]:
    blocks, bits = _blocks_of(weights), weights.get("num_bits")
    if blocks is None or weights.get("type", "int") != "int" or type(bits) is not int or not 1 <= bits <= 8:
        return []
    return [packed(bits, blocks)]


COMPRESSED_TENSORS: Mapping[str, Callable[[Settings], list[Format]]] = {
    "float-quantized": _floats,
    "naive-quantized": _floats,
    "int-quantized": _bytes,
    "pack-quantized": _packed,
    "mxfp4-pack-quantized": lambda weights: [fp4.MXFP4_PACKED],
    "nvfp4-pack-quantized": lambda weights: [fp4.NVFP4_PACKED],
    "mxfp8-quantized": lambda weights: [fp8(".weight", ".weight_scale", ((1, 32),), "F8_E8M0")],
}
METHODS: Mapping[str, Callable[[Settings], tuple[Format, ...]]] = {
    "fp8": _fp8,
    "fbgemm_fp8": lambda settings: (fp8(".weight", ".weight_scale", (None,)), fp8("", "_scale", (None,))),
    "mxfp4": lambda settings: (fp4.MXFP4_BLOCKS,),
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "bitnet": _bitnet,
}


def _groups(settings: Settings) -> list[Settings]:
    groups = settings.get("config_groups")
    values = groups.values() if isinstance(groups, Mapping) else ()
    return [group for group in values if isinstance(group, Mapping)]


def _detail(settings: Settings) -> str:
    """The format within a method, as far as the settings name it."""
    groups = _groups(settings)
    weights = groups[0].get("weights") if len(groups) == 1 else None
    weights = weights if isinstance(weights, Mapping) else {}
    bits = settings.get("bits", settings.get("num_bits", weights.get("num_bits")))
    named = [
        settings.get(key)
        for key in ("quant_algo", "format", "fmt", "checkpoint_format", "bnb_4bit_quant_type")
    ]
    named += [group.get("format") for group in groups if group.get("format") != settings.get("format")]
    words = [word for word in dict.fromkeys(named) if isinstance(word, str)]
    words += [f"{bits} bits"] if isinstance(bits, int) else []
    words += ["transformed"] if settings.get("transform_config") else []
    return f" ({', '.join(words)})" if words else ""


def _block(size: Any) -> Block | None:
    if size is None:
        return None
    if isinstance(size, str):
        parts = size.split("x")
        size = [int(part) for part in parts] if all(part.isdecimal() for part in parts) else size
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise GGUFError(f"config.json: block size {size!r} is not [rows, columns]")
    return size[0], size[1]
