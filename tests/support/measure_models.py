"""Small GGUF files for the tests of measure, made once a session from the example model."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np

from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.gguf_io.convert import open_checkpoint
from quantmill.qkernels import to_float32

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-qwen3-moe"
DATA = Path(__file__).parents[1] / "data" / "measure"


@functools.cache
def directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="quantmill-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def tiny(kind: str) -> Path:
    """The example model as GGUF. kind: "F16"; or "Q8_0", "Q4_0": every matrix of that type, by the gguf package's
    own quantizer, so that these tests need none of ours."""
    path = directory() / f"tiny-{kind}.gguf"
    source = open_checkpoint(EXAMPLE, "f16")
    data = {}
    for spec in source.specs():
        values = to_float32(source.read(spec.name), spec.type)
        # Vectors stay in float32, as the converter has them.
        type_name = "F32" if spec.type == "F32" else kind
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name])
        data[spec.name] = (spec.shape, type_name, raw)
    tensors = [OutputTensor(name, shape, type_name) for name, (shape, type_name, _) in data.items()]
    with GGUFSink(path, source.metadata, tensors) as sink:
        for name, (_, _, raw) in data.items():
            sink.write(name, raw.view("uint8"))
        sink.commit()
    return path


@functools.cache
def untied() -> Path:
    """The example model in F16, the embeddings a second time as an output matrix of its own: the same predictions."""
    path = directory() / "untied.gguf"
    source = open_source(tiny("F16"))
    held = {spec.name: spec for spec in source.specs()}
    tensors = [OutputTensor(name, spec.shape, spec.type) for name, spec in held.items()]
    embeddings = held["token_embd.weight"]
    tensors.append(OutputTensor("output.weight", embeddings.shape, embeddings.type))
    with GGUFSink(path, source.metadata, tensors) as sink:
        for name in held:
            sink.write(name, source.read(name))
        sink.write("output.weight", source.read("token_embd.weight"))
        sink.commit()
    return path


def written_again(model, path: Path, change=lambda spec, raw: raw, metadata=None) -> Path:
    """A GGUF again under another name. change(spec, raw): of each tensor's bytes, u8 [n_rows, row_bytes], a copy."""
    source = open_source(model)
    tensors = [OutputTensor(spec.name, spec.shape, spec.type) for spec in source.specs()]
    with GGUFSink(path, metadata or source.metadata, tensors) as sink:
        for spec in source.specs():
            sink.write(spec.name, change(spec, np.array(source.read(spec.name))))
        sink.commit()
    source.close()
    return path


def one_by_one(work, items):
    """What shares work out among threads, without any."""
    return [work(item) for item in items]
