"""Tiny Hugging Face models of every family, written the same everywhere: no torch, no transformers, fixed values.

The names and shapes of their tensors were taken from transformers' own `save_pretrained` once (tensors.json, made
by data/convert/make.py); config.json is as the hub has it, short, so that the family's defaults count too.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.gguf_io import GGUFSink, OutputTensor
from quantmill.gguf_io.convert import Checkpoint, open_checkpoint
from quantmill.gguf_io.convert.nextn import ONLY, WITH
from quantmill.gguf_io.safetensors import DTYPES
from quantmill.qkernels import to_float32
from tests.support import deepseek_v4_model
from tests.support.convert_tokenizers import write_tokenizer
from tests.support.later_layers import floats, later_layers
from tests.support.stored_forms import as_mimo, fp8, fused, mxfp4_blocks, mxfp4_packed

DATA = Path(__file__).parents[1] / "data" / "convert"


@dataclass(frozen=True)
class Model:
    """tokenizer: spm, or the llama.cpp pre-tokenizer whose definition tokenizer.json gets. tensors_of: another
    model whose tensors it has. options: given to llama.cpp's converter. raw: that is to read config.json itself, as
    transformers' class would fill in what the model does not have. bare: names without "model." before them, as
    embedding models have them. whole: the tensors of what sees are there too, as the class of both saves them."""

    architecture: str
    model_type: str
    config: dict[str, Any]
    tokenizer: str
    dtype: str = "BF16"
    shards: int = 1
    tensors_of: str = ""
    options: list[str] = field(default_factory=list)
    raw: bool = False
    bare: bool = False
    whole: bool = False
    files: dict[str, str] = field(default_factory=dict)


MODELS = {
    name: Model(**row) for name, row in json.loads((DATA / "models.json").read_text(encoding="utf-8")).items()
}


def written_once(
    write: Callable[[str, Path], Path], make_folder: Callable[[str], Path]
) -> Callable[[str], Path]:
    """name → its model, written when it is first asked for, under the directory name that general.name comes from."""

    @functools.cache
    def model(name: str) -> Path:
        return write(name, make_folder(name) / "Tiny-Model-1B-Instruct")

    return model


# What Qwen3.8-Flash-Next hashes groups of tokens with: primes from 200 on, and large odd numbers.
HASH = {
    "layer_multipliers": [35184372088833, 23456248059223, 987654321987],
    "ngram_heads_offsets": [0, 211, 434, 661],
    "ngram_heads_vocab_sizes": [211, 223, 227, 229],
}
README = """---
license: apache-2.0
language:
- en
- fr
base_model: example-org/Tiny-Base-1B
tags:
- conversational
pipeline_tag: text-generation
datasets:
- example-org/some-text
---
# Tiny
"""


def write_model(name: str, directory: Path) -> Path:
    """Write the model `name` into `directory` and return it."""
    model = MODELS[name]
    directory.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [model.architecture], "model_type": model.model_type, **model.config}
    _write_json(directory / "config.json", {**config, "bos_token_id": 1, "eos_token_id": 2})
    _write_json(
        directory / "generation_config.json", {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    )
    (directory / "README.md").write_text(README, encoding="utf-8")
    for file, text in model.files.items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(text, encoding="utf-8")
    write_shards(directory, tensors(name), model.shards)
    write_tokenizer(directory, model.tokenizer, model.config.get("text_config", model.config)["vocab_size"])
    return directory


def opened(name: str, directory: Path) -> Checkpoint:
    """The model as a source of what llama.cpp's converter was asked for."""
    return open_checkpoint(directory, later=ONLY if "--mtp" in MODELS[name].options else WITH)


def shapes_of(name: str) -> dict[str, list[int]]:
    """Tensor name → shape."""
    return json.loads((DATA / "tensors.json").read_text())[MODELS[name].tensors_of or name]


def tensors(name: str) -> dict[str, tuple[str, np.ndarray]]:
    """name → (safetensors dtype, values), in stored form."""
    model = MODELS[name]
    random = np.random.RandomState(sum(name.encode()))
    if model.model_type == "deepseek_v4":
        return deepseek_v4_model.tensors(random, shapes_of(name), model.config["n_routed_experts"])
    found: dict[str, tuple[str, np.ndarray]] = {}
    for tensor, shape in shapes_of(name).items():
        if name == "gpt-oss" and tensor.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found.update(mxfp4_blocks(random, tensor, shape))
        elif tensor.rpartition(".")[2] in HASH:
            found[tensor] = ("I64", np.array(HASH[tensor.rpartition(".")[2]], np.int64))
        elif name == "kimi-k3-packed" and ".experts." in tensor:
            found.update(mxfp4_packed(random, tensor, shape))
        elif name.endswith("-fp8") and "proj" in tensor:
            found.update(fp8(random, tensor, shape, in_blocks=name != "llama-fp8"))
        else:
            found[tensor] = floats(model.dtype, random.standard_normal(shape).astype(np.float32) * 0.05)
    if name == "qwen3-vl-moe-vision":  # stacks turned round
        found = {
            tensor: (dtype, values.swapaxes(1, 2) if ".experts." in tensor else values)
            for tensor, (dtype, values) in fused(found).items()
        }
    if name == "kimi-k2.5-vision":
        found = {f"language_model.{tensor}": value for tensor, value in found.items()}
        found["vision_tower.encoder.final_layernorm.weight"] = floats("BF16", np.ones(64, np.float32))
    elif name.endswith("-vision"):
        found = {tensor.replace("model.", "model.language_model."): value for tensor, value in found.items()}
        tower = "visual.merger.norm" if name == "qwen3.5-vision" else "vision_tower.post_layernorm"
        found[f"model.{tower}.weight"] = floats("BF16", np.ones(64, np.float32))
    if model.bare:
        found = {tensor.removeprefix("model."): value for tensor, value in found.items()}
    if name.endswith("-nextn"):
        found |= later_layers(random, model, found)
    if name == "mimo-v2.5-nextn":
        found = as_mimo(random, found)
    return fused(found) if name == "qwen3-moe-fused" else found


def write_shards(directory: Path, found: dict[str, tuple[str, np.ndarray]], n_shards: int = 1) -> None:
    """model.safetensors, or shards with an index; every third tensor of three shards goes to the same one."""
    if n_shards == 1:
        write_safetensors(directory / "model.safetensors", found)
        return
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = dict(list(found.items())[i::n_shards])
        write_safetensors(directory / file, part)
        weight_map |= dict.fromkeys(part, file)
    _write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_safetensors(path: Path, found: dict[str, tuple[str, np.ndarray]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, values) in found.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [position, position + values.nbytes],
        }
        position += values.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for _, values in found.values():
            file.write(np.ascontiguousarray(values).tobytes())


def write_sparse(
    path: Path, shapes: dict[str, tuple[str, tuple[int, ...]]], kept: dict[str, np.ndarray]
) -> int:
    """name → (dtype, shape), all zeros but for the tensors `kept`, without taking the space: the data is a hole in the
    file. Returns the bytes of the data."""
    header: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape) in shapes.items():
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)
        for name, values in kept.items():
            file.seek(8 + len(raw) + header[name]["data_offsets"][0])
            file.write(values.tobytes())
    return position


def edit(path: Path, **changes: Any) -> None:
    """Replace keys of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is None:
            del value[key]
        else:
            value[key] = change
    path.write_text(json.dumps(value))


def write_f32(directory: Path, path: Path) -> Path:
    """The checkpoint as a GGUF of F32 tensors (blocks it came with stay, so do whole numbers)."""
    source = open_checkpoint(directory, "f32")
    kinds = {spec.name: spec.type if spec.type in ("MXFP4", "I32") else "F32" for spec in source.specs()}
    outputs = [OutputTensor(spec.name, spec.shape, kinds[spec.name]) for spec in source.specs()]
    with GGUFSink(path, source.metadata, outputs) as sink:
        for spec in source.specs():
            raw = source.read(spec.name)
            rows = raw if kinds[spec.name] != "F32" else to_float32(raw, spec.type).view(np.uint8)
            sink.write(spec.name, rows)
        sink.commit()
    return path


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
