"""A GGUF of Llama's shape, of any size, with random weights, and importance for it.

`python -m bench.synthetic OUT.gguf [--layers N] [--vocabulary N]`, for measuring time and memory on files larger
than any model at hand. Writes OUT.gguf in F16 and OUT-imatrix.gguf; the same options give the same bytes. Four layers
and the default vocabulary make 2.3 GB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

_HIDDEN, _FEED_FORWARD, _KEY_VALUE, _HEAD = 4096, 14336, 1024, 128


def tensors(layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes [rows, columns]; one-dimensional ones are norms."""
    yield "token_embd.weight", (vocabulary, _HIDDEN)
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", (_HIDDEN,)
        yield f"blk.{i}.ffn_norm.weight", (_HIDDEN,)
        yield f"blk.{i}.attn_q.weight", (_HIDDEN, _HIDDEN)
        yield f"blk.{i}.attn_k.weight", (_KEY_VALUE, _HIDDEN)
        yield f"blk.{i}.attn_v.weight", (_KEY_VALUE, _HIDDEN)
        yield f"blk.{i}.attn_output.weight", (_HIDDEN, _HIDDEN)
        yield f"blk.{i}.ffn_gate.weight", (_FEED_FORWARD, _HIDDEN)
        yield f"blk.{i}.ffn_up.weight", (_FEED_FORWARD, _HIDDEN)
        yield f"blk.{i}.ffn_down.weight", (_HIDDEN, _FEED_FORWARD)
    yield "output_norm.weight", (_HIDDEN,)
    yield "output.weight", (vocabulary, _HIDDEN)


def _kind(shape: tuple[int, ...]) -> np.dtype:
    return np.dtype(np.float32 if len(shape) == 1 else np.float16)


def write_model(path: Path, layers: int, vocabulary: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HIDDEN // _HEAD)
    writer.add_head_count_kv(_KEY_VALUE // _HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"token {i}" for i in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * vocabulary)
    for name, shape in tensors(layers, vocabulary):
        kind = _kind(shape)
        writer.add_tensor_info(name, shape, kind, int(np.prod(shape)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for _, shape in tensors(layers, vocabulary):
        weights = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        writer.write_tensor_data(weights.astype(_kind(shape)))
    writer.close()


def write_importance(path: Path, layers: int, vocabulary: int) -> None:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    rng = np.random.default_rng(0)
    for name, shape in tensors(layers, vocabulary):
        if len(shape) == 2:
            importance = rng.gamma(0.7, 1.0, (1, shape[1])).astype(np.float32) + np.float32(1e-3)
            writer.add_tensor(f"{name}.in_sum2", importance)
            writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.synthetic", description=__doc__)
    parser.add_argument("model", type=Path, metavar="OUT.gguf")
    parser.add_argument("--layers", type=int, default=4, help="436 MB each")
    parser.add_argument("--vocabulary", type=int, default=32000, help="16 kB a token")
    options = parser.parse_args(arguments)
    write_model(options.model, options.layers, options.vocabulary)
    importance = options.model.with_name(f"{options.model.stem}-imatrix.gguf")
    write_importance(importance, options.layers, options.vocabulary)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
