"""A GGUF of Llama's shape, of any size, with random weights, and importance for it.

`python -m bench.synthetic OUT.gguf [--layers N] [--vocabulary N]`, for measuring time and memory on files larger
than any model at hand. Writes OUT.gguf in F16 and OUT-imatrix.gguf; the same options give the same bytes. Four layers
and the default vocabulary make 2.3 GB.

`--hollow` writes a model of the shapes of Qwen3-30B-A3B instead, whose 61 GB of weights are a hole in the file: for
plans and sizes, which read no weights.
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


# Qwen3-30B-A3B
_LAYERS, _WIDTH, _HEADS, _KV_HEADS, _HEAD_WIDTH = 48, 2048, 32, 4, 128
_EXPERTS, _USED, _EXPERT_WIDTH, _WORDS = 128, 8, 768, 151936


def hollow_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of Qwen3-30B-A3B, [rows, columns], of stacks [experts, rows, columns]."""
    yield "token_embd.weight", (_WORDS, _WIDTH)
    yield "output.weight", (_WORDS, _WIDTH)
    yield "output_norm.weight", (_WIDTH,)
    for i in range(_LAYERS):
        yield f"blk.{i}.attn_norm.weight", (_WIDTH,)
        yield f"blk.{i}.attn_q.weight", (_HEADS * _HEAD_WIDTH, _WIDTH)
        yield f"blk.{i}.attn_k.weight", (_KV_HEADS * _HEAD_WIDTH, _WIDTH)
        yield f"blk.{i}.attn_v.weight", (_KV_HEADS * _HEAD_WIDTH, _WIDTH)
        yield f"blk.{i}.attn_output.weight", (_WIDTH, _HEADS * _HEAD_WIDTH)
        yield f"blk.{i}.attn_q_norm.weight", (_HEAD_WIDTH,)
        yield f"blk.{i}.attn_k_norm.weight", (_HEAD_WIDTH,)
        yield f"blk.{i}.ffn_norm.weight", (_WIDTH,)
        yield f"blk.{i}.ffn_gate_inp.weight", (_EXPERTS, _WIDTH)
        yield f"blk.{i}.ffn_gate_exps.weight", (_EXPERTS, _EXPERT_WIDTH, _WIDTH)
        yield f"blk.{i}.ffn_up_exps.weight", (_EXPERTS, _EXPERT_WIDTH, _WIDTH)
        yield f"blk.{i}.ffn_down_exps.weight", (_EXPERTS, _WIDTH, _EXPERT_WIDTH)


def write_hollow(path: Path) -> None:
    """Keys and tensors of Qwen3-30B-A3B; where its weights would be, the file has a hole of that size."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("Qwen3-30B-A3B")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(40960)
    writer.add_embedding_length(_WIDTH)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_key_length(_HEAD_WIDTH)
    writer.add_value_length(_HEAD_WIDTH)
    writer.add_expert_count(_EXPERTS)
    writer.add_expert_used_count(_USED)
    writer.add_expert_feed_forward_length(_EXPERT_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(_WORDS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    n_bytes = 0
    for name, shape in hollow_tensors():
        single = len(shape) == 1 or "ffn_gate_inp" in name
        kind = np.dtype(np.float32 if single else np.float16)
        size = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(name, shape, kind, size)
        n_bytes += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    with path.open("r+b") as file:
        file.truncate(start + n_bytes)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.synthetic", description=__doc__)
    parser.add_argument("model", type=Path, metavar="OUT.gguf")
    parser.add_argument("--layers", type=int, default=4, help="436 MB each")
    parser.add_argument("--vocabulary", type=int, default=32000, help="16 kB a token")
    parser.add_argument(
        "--hollow", action="store_true", help="shapes of Qwen3-30B-A3B, no weights, no importance"
    )
    options = parser.parse_args(arguments)
    if options.hollow:
        write_hollow(options.model)
        return 0
    write_model(options.model, options.layers, options.vocabulary)
    importance = options.model.with_name(f"{options.model.stem}-imatrix.gguf")
    write_importance(importance, options.layers, options.vocabulary)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
