"""The part of a model that sees as tensors and keys of a GGUF of its own, llama.cpp's --mmproj file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFWriter

from quantmill.gguf_io.convert import general, keys, layout
from quantmill.gguf_io.convert.config import configuration, load_optional_json
from quantmill.gguf_io.convert.families import find_family
from quantmill.gguf_io.convert.output_types import FILE_TYPES, output_type, recorded
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.storage.numbers import to_float32
from quantmill.gguf_io.convert.storage.reader import Reader, check_values
from quantmill.gguf_io.convert.stored import readers
from quantmill.gguf_io.convert.tower import Tensor, Tower
from quantmill.gguf_io.convert.towers import TOWERS
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.layout import OutputTensor
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.safetensors import open_shards
from quantmill.gguf_io.types import GGML_TYPES

ARCHITECTURE = "clip"
_ALL = slice(None)


class Projector:
    """tensors: what is to be written, with the type it is written in; `values` gives their numbers. outtype: what
    "auto" became. paths: the files that are read."""

    def __init__(self, directory: Path, outtype: str = "auto") -> None:
        warnings: list[str] = []
        raw = configuration(directory)
        tower = _tower_of(raw)
        text = _text_of(raw)
        config = tower.completed(_settings(directory, raw, text, tower))
        stored = open_shards(directory, warnings.append)
        found = readers(text, stored, warnings.append)
        self.outtype = output_type(outtype.upper(), stored)
        self._sources = dict(_placed(directory, tower, config, found))
        self._config = config
        self.tensors = tuple(
            _output(name, tensor, reader, config, self.outtype)
            for name, (tensor, reader) in self._sources.items()
        )
        writer = GGUFWriter(None, ARCHITECTURE)
        shapes = [(tensor.name, tensor.shape[::-1]) for tensor in self.tensors]
        counts = general.parameter_counts(shapes)
        general.write(writer, directory, counts, warnings.append, gguf.GGUFType.MMPROJ)
        writer.add_file_type(FILE_TYPES[self.outtype])
        for row in tower.keys:
            keys.add(writer, ARCHITECTURE, row.write(config))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.metadata: Metadata = recorded(writer)
        self.paths = tuple(dict.fromkeys(tensor.path for tensor in stored.values()))
        self.warnings = tuple(warnings)

    def values(self, name: str) -> np.ndarray:
        """f32 [rows, columns] of a tensor; leading dimensions are rows, a vector is one row."""
        tensor, reader = self._sources[name]
        values = to_float32(reader.values(_ALL, _ALL), reader.plain).reshape([*reader.shape] or [1])
        values = tensor.values(values, self._config) if tensor.values else values
        return np.ascontiguousarray(values).reshape(-1, _shape(tensor, reader, self._config)[-1])


def _tower_of(raw: Mapping[str, Any]) -> Tower:
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    for tower in TOWERS:
        sees, hears = isinstance(raw.get("vision_config"), Mapping), bool(raw.get("audio_config"))
        if name in tower.classes and sees and tower.hears == hears:
            return tower
    if not any(raw.get(key) for key in ("vision_config", "audio_config")):
        raise GGUFError(
            "--mmproj: config.json has no vision_config, so this model does not see; leave out --mmproj"
        )
    supported = ", ".join(sorted({one for tower in TOWERS for one in tower.classes}))
    known = any(name in tower.classes for tower in TOWERS)
    what = "has no vision_config of a kind that is known" if known else "is not supported"
    raise GGUFError(
        f"--mmproj: architecture {name} {what}. Supported with what sees: {supported}. "
        "Convert this part with llama.cpp's convert_hf_to_gguf.py --mmproj"
    )


def _text_of(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the text part, of which a class that is not in the table may be."""
    family = find_family(raw)
    if family is not None:
        return family.completed(raw)
    inner = raw.get("text_config")
    text = {**raw, **inner} if isinstance(inner, Mapping) else raw
    keys.need(text, "hidden_size")
    return text


def _settings(
    directory: Path, raw: Mapping[str, Any], text: Mapping[str, Any], tower: Tower
) -> dict[str, Any]:
    """vision_config, audio_config with "audio_" before its names, and what the encoders must know of the text part, of
    the whole model and of the preparation of images."""
    hearing = raw.get("audio_config") or {}
    if not isinstance(hearing, Mapping):
        raise GGUFError(f"config.json: audio_config must be an object, not {hearing!r}")
    found = dict(raw["vision_config"]) | {f"audio_{key}": value for key, value in hearing.items()}
    found |= {"text_size": text["hidden_size"], "text_norm_eps": text.get("rms_norm_eps", 1e-6)}
    found.setdefault("model_type", "")
    found |= {f"outer_{key}": raw.get(key) for key in tower.outer}
    for file, inner in (
        ("preprocessor_config.json", "media_proc_cfg"),
        ("processor_config.json", "image_processor"),
    ):
        prepared = load_optional_json(directory / file)
        for part in (prepared, prepared.get(inner)):
            if isinstance(part, Mapping):
                found |= {f"prepared_{key}": part[key] for key in tower.prepared if part.get(key) is not None}
    return found


def _placed(
    directory: Path, tower: Tower, config: Mapping[str, Any], found: Mapping[str, Reader]
) -> Iterable[tuple[str, tuple[Tensor, Reader]]]:
    """GGUF name -> what it is made of, in the order of llama.cpp's converter. Raises GGUFError for what is too much,
    missing or of another shape than config.json says."""
    expected: dict[str, list[tuple[str, Tensor]]] = {}
    for tensor in tower.tensors:
        for here, there in tensor.numbers(config) if tensor.numbers else ((0, 0),):
            made = (tensor.target.format(there), tensor)
            expected.setdefault(tensor.name.format(here), []).append(made)
    for name, reader in found.items():
        match = re.match(tower.prefix, name)
        if match is None or re.match(tower.left_out, name[match.end() :]):
            continue
        made_of_it = expected.pop(name[match.end() :], None)
        if made_of_it is None:
            raise GGUFError(f"{directory}: llama.cpp's encoder of this kind has no place for {name}")
        check_values(name, reader)
        for target, tensor in made_of_it:
            shape = tuple(layout.size(config, dimension) for dimension in tensor.shape.split())
            if reader.shape != shape:
                raise GGUFError(
                    f"{directory}: {name} has shape {list(reader.shape)}, config.json asks for {list(shape)} "
                    f"({', '.join(tensor.shape.split())})"
                )
            yield target, (tensor, reader)
    if expected:
        name, (first, *_) = next(iter(expected.items()))
        raise GGUFError(
            f"{directory}: {name} ({first[0]}) is missing ({len(expected)} tensors of the encoder are): "
            "the checkpoint is incomplete or holds the text part only"
        )


def _shape(tensor: Tensor, reader: Reader, config: Config) -> tuple[int, ...]:
    """Of what is written, in Hugging Face's order."""
    becomes = tuple(layout.size(config, dimension) for dimension in tensor.becomes.split())
    return becomes or reader.shape or (1,)


def _output(name: str, tensor: Tensor, reader: Reader, config: Config, outtype: str) -> OutputTensor:
    shape = _shape(tensor, reader, config)
    kind = tensor.type(outtype) if len(shape) > 1 else "F32"
    block = GGML_TYPES[kind].block
    return OutputTensor(name, shape[::-1], kind if shape[-1] % block == 0 else "F16")
