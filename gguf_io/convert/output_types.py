"""What a GGUF says of the types in it, and how what was said is kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Set

import gguf
from gguf import GGUFWriter

from quantmill.gguf_io.convert.names import TensorTable
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.gguf_io.safetensors import StoredTensor
from quantmill.gguf_io.tensors import TensorSpec

# Blocks that stay what they are in a conversion, and the file type that they make.
KEPT = {"NVFP4": gguf.LlamaFileType.MOSTLY_NVFP4, "MXFP4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE}
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}

# Small tensors that llama.cpp computes with in F32 whatever the file type is.
ALWAYS_F32 = (
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "ssm_conv1d.weight",
    *("ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"),
    "shortconv.conv.weight",
    "indexer.proj.weight",
    *("hc_attn_fn.weight", "hc_ffn_fn.weight", "output_hc_fn.weight"),
    *("indexer_compressor_ape.weight", "indexer_compressor_gate.weight"),
    *("position_embd.weight", "token_types.weight"),
    "altup_correct_coef.weight",
    "altup_predict_coef.weight",
)


def output_type(asked: str, stored: Mapping[str, StoredTensor]) -> str:
    """The type asked for; auto goes by the first matrix in halves, as config.json's dtype is often wrong."""
    if asked in FILE_TYPES:
        return asked
    if asked != "AUTO":
        raise GGUFError(f"type {asked.lower()}: a conversion gives f32, f16, bf16, q8_0 or auto")
    matrices = (tensor.dtype for tensor in stored.values() if len(tensor.shape) > 1)
    return next((dtype for dtype in matrices if dtype in ("F16", "BF16")), "F16")


def keeps_type(name: str, as_stored: bool) -> bool:
    """Whether a tensor of several rows may be other than F32 (conversion/base.py: prepare_tensors). as_stored: the
    family's, of which small ones are what they are in the checkpoint."""
    small = () if as_stored else ALWAYS_F32
    return name.endswith(".weight") and not name.endswith(("_norm.weight", *small))


def file_type(types: Set[str], outtype: str) -> gguf.LlamaFileType:
    """general.file_type of a conversion to `outtype` of tensors of these types."""
    kept = next((type for type in KEPT if type in types), None)
    return FILE_TYPES[outtype] if kept is None or outtype == "Q8_0" else KEPT[kept]


def write_precision(
    writer: GGUFWriter, config: Config, table: TensorTable, specs: Mapping[str, TensorSpec]
) -> None:
    """Which NVFP4 tensors are not to be multiplied with activations of four bits (ModelOpt's W4A16_NVFP4)."""
    settings = config.get("quantization_config") or {}
    of_layers = settings.get("quantized_layers") or {}
    names = []
    for name, spec in specs.items():
        if spec.type == "NVFP4":
            module = table.views[name].sources[0].removesuffix(".weight")
            algorithm = settings.get("quant_algo")
            for path in itertools.accumulate(module.split("."), "{}.{}".format):
                entry = of_layers.get(path) or of_layers.get(path.replace("language_model.", ""))
                algorithm = entry.get("quant_algo") if isinstance(entry, Mapping) else algorithm
            names += [name] if algorithm == "W4A16_NVFP4" else []
    if names:
        writer.add_array("general.tensor_extra.name", sorted(names))
        writer.add_array("general.tensor_extra.prec_a4", [False] * len(names))


def recorded(writer: GGUFWriter) -> Metadata:
    """What the writer's methods recorded, key by key."""
    items: dict[str, MetaValue] = {}
    for key, found in writer.kv_data[0].items():
        element = None
        if found.type == GGUFValueType.ARRAY:
            inside = found.sub_type or gguf.GGUFValueType.get_type(found.value[0])
            element = GGUFValueType.UINT8 if isinstance(found.value, bytes) else GGUFValueType(inside)
        items[key] = MetaValue(GGUFValueType(found.type), found.value, element)
    return Metadata(items)
