"""The same model with wider rows: matrices padded with zeros to whole blocks of 256, for types that need such rows.

Nothing the model says changes: the added channels are zero everywhere. RMSNorm's mean is taken over more channels,
so its weights and its ε are scaled to make up for them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantmill.gguf_io import GGUFSink, GGUFValueType, Metadata, MetaValue, OutputTensor, open_source
from quantmill.qkernels import to_float32

BLOCK = 256


def pad_llama(path: Path, output: Path) -> None:
    """A Llama GGUF in F16 and F32 → the same with hidden size and heads padded so that rows are whole blocks.

    Raises AssertionError for a model in which queries' heads cannot be padded in step with keys'.
    """
    source = open_source(path)
    metadata = source.metadata

    def number(key: str) -> int:
        return int(metadata[f"llama.{key}"].value)

    hidden, heads = number("embedding_length"), number("attention.head_count")
    kv_heads = number("attention.head_count_kv")
    size = hidden // heads
    wide = -(-hidden // BLOCK) * BLOCK
    assert wide % size == 0
    assert (wide // size) * kv_heads % heads == 0
    wide_heads = wide // size
    new = {
        "embedding_length": wide,
        "attention.head_count": wide_heads,
        "attention.head_count_kv": wide_heads * kv_heads // heads,
        "attention.key_length": size,
        "attention.value_length": size,
    }
    share = hidden / wide
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    pairs = {f"llama.{key}": MetaValue(GGUFValueType.UINT32, value) for key, value in new.items()}
    pairs[epsilon] = MetaValue(GGUFValueType.FLOAT32, float(metadata[epsilon].value) * share)
    widths = {hidden: wide, kv_heads * size: new["attention.head_count_kv"] * size}
    tensors = [OutputTensor(s.name, tuple(widths.get(n, n) for n in s.shape), s.type) for s in source.specs()]
    with GGUFSink(output, Metadata(dict(metadata) | pairs), tensors) as sink:
        for spec, tensor in zip(source.specs(), tensors, strict=True):
            values = to_float32(np.ascontiguousarray(source.read(spec.name)), spec.type)
            if spec.name.endswith("norm.weight"):
                values = values * np.float32(share**0.5)
            whole = np.zeros(tensor.shape[::-1], "<f2" if spec.type == "F16" else "<f4")
            whole[tuple(slice(n) for n in spec.shape[::-1])] = values.reshape(spec.shape[::-1])
            sink.write(spec.name, whole)
        sink.commit()
