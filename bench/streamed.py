"""A model larger than the memory, evaluated layer by layer: `python -m bench.streamed --work DIR [--layers N]`.

Makes a mixture of experts in F16, of any number of layers of 0.8 GB each (15 make 12 GB), all with the same random
weights and with the example's vocabulary; evaluates it on a few chunks with `--stream`, once or with `--both` also as a
whole, and says what each took: seconds of the processor, peak of resident memory, and the perplexity. Both must come to
the same one, and save the same predictions, byte for byte.

`--filled N`: only the first N layers have weights, the others are holes in the file, which read as zeros and take no
disk: for the memory and the time of a model that is larger than the disk (74 layers are 61 GB).
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from bench import machine, process, tables
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.gguf_io.metadata import Metadata, MetaValue

_EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "tiny-qwen3-moe"
_HIDDEN, _EXPERT, _EXPERTS, _HEADS, _KEY_VALUE, _HEAD = 2048, 4096, 16, 16, 4, 128
_WAYS = ("layer by layer", "as a whole")
_KEYS = {
    "embedding_length": _HIDDEN,
    "expert_feed_forward_length": _EXPERT,
    "feed_forward_length": _EXPERT,
    "expert_count": _EXPERTS,
    "attention.head_count": _HEADS,
    "attention.head_count_kv": _KEY_VALUE,
    "attention.key_length": _HEAD,
    "attention.value_length": _HEAD,
}


@dataclass(frozen=True)
class Row:
    way: str
    n_bytes: int
    cpu_s: float
    wall_s: float
    peak_gb: float
    own_gb: float | None
    perplexity: float


_COLUMNS = (
    tables.Column("way", "way"),
    tables.Column("model, bytes", "n_bytes", "{:d}"),
    tables.Column("CPU, s", "cpu_s", "{:.1f}"),
    tables.Column("wall, s", "wall_s", "{:.1f}"),
    tables.Column("peak, GB resident", "peak_gb", "{:.2f}"),
    tables.Column("of it not mapped files", "own_gb", "{:.2f}"),
    tables.Column("perplexity", "perplexity", "{:.12f}"),
)


def tensors(layers: int, vocabulary: int) -> Iterator[OutputTensor]:
    yield OutputTensor("token_embd.weight", (_HIDDEN, vocabulary), "F16")
    for i in range(layers):
        for name, shape in (
            ("attn_norm", (_HIDDEN,)),
            ("ffn_norm", (_HIDDEN,)),
            ("attn_q_norm", (_HEAD,)),
            ("attn_k_norm", (_HEAD,)),
            ("attn_q", (_HIDDEN, _HEADS * _HEAD)),
            ("attn_k", (_HIDDEN, _KEY_VALUE * _HEAD)),
            ("attn_v", (_HIDDEN, _KEY_VALUE * _HEAD)),
            ("attn_output", (_HEADS * _HEAD, _HIDDEN)),
            ("ffn_gate_inp", (_HIDDEN, _EXPERTS)),
            ("ffn_gate_exps", (_HIDDEN, _EXPERT, _EXPERTS)),
            ("ffn_up_exps", (_HIDDEN, _EXPERT, _EXPERTS)),
            ("ffn_down_exps", (_EXPERT, _HIDDEN, _EXPERTS)),
        ):
            plain = len(shape) == 1 or name == "ffn_gate_inp"
            yield OutputTensor(f"blk.{i}.{name}.weight", shape, "F32" if plain else "F16")
    yield OutputTensor("output_norm.weight", (_HIDDEN,), "F32")


def write_model(path: Path, layers: int, filled: int) -> None:
    with contextlib.closing(open_source(_EXAMPLE)) as source:
        keys = dict(source.metadata)
    arch = str(keys["general.architecture"].value)
    for key, value in (*_KEYS.items(), ("block_count", layers)):
        keys[f"{arch}.{key}"] = MetaValue(keys[f"{arch}.{key}"].type, value)
    vocabulary = len(keys["tokenizer.ggml.tokens"].value)
    random = np.random.default_rng(0).standard_normal((1 << 24) + 12345, np.float32)
    weights = (random * np.float32(0.02)).astype(
        np.float16
    )  # taken again and again, from another place each time
    at = 0
    # holes take no disk, which the sink cannot know
    with (
        patch("quantmill.gguf_io.sink.require_space"),
        GGUFSink(path, Metadata(keys), list(tensors(layers, vocabulary)), force=True) as sink,
    ):
        for spec in sink.specs():
            if spec.type == "F32" and len(spec.shape) == 1:
                sink.write(spec.name, np.ones(spec.n_cols, np.float32))
                continue
            if spec.name.startswith("blk.") and int(spec.name.split(".")[1]) >= filled:
                sink.count_written(spec.name, spec.n_rows)
                continue
            size = 4 if spec.type == "F32" else 2
            source_of = random if size == 4 else weights
            left = spec.n_bytes // size
            row = spec.n_cols
            while left:
                at %= len(source_of) - row
                n = min(left, (len(source_of) - at) // row * row)
                sink.write(spec.name, np.ascontiguousarray(source_of[at : at + n]))
                at, left = at + n, left - n
        sink.commit()


def _predictions(work: Path, way: str) -> Path:
    return work / f"{way}.logits"


def measured(model: Path, work: Path, way: str, options: list[str], chunks: int) -> Row:
    record = work / f"{way}.json"
    text = ("--text", str(_EXAMPLE / "evaluation.txt"), "--ctx", "64", "--chunks", str(chunks))
    left = ("--save-logits", str(_predictions(work, way)), "-o", str(record), "--force")
    command = ("evaluate", "--base", str(model), *text, "--threads", "1", *left, *options)
    used = process.run([sys.executable, "-m", "quantmill", *command])
    found = json.loads(record.read_text())["base"]["ppl"]["value"]
    own = None if used.own_bytes is None else used.own_bytes / 1e9
    return Row(way, model.stat().st_size, used.cpu_s, used.wall_s, used.peak_bytes / 1e9, own, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--filled", type=int, help="layers that have weights; all of them")
    parser.add_argument("--both", action="store_true", help="also as a whole, which needs the memory for it")
    parser.add_argument("--keep", action="store_true", help="leave the model there")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = machine.describe("bench.streamed", sys.argv[1:])
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.work / f"streamed-{options.layers}.gguf"
    try:
        if not model.exists():
            write_model(model, options.layers, options.layers if options.filled is None else options.filled)
        rows = [measured(model, options.work, _WAYS[0], ["--stream"], options.chunks)]
        if options.both:
            rows.append(measured(model, options.work, _WAYS[1], [], options.chunks))
    finally:
        if not options.keep:
            model.unlink(missing_ok=True)
    tables.report(options.out, "Evaluating layer by layer", here, _COLUMNS, rows)
    if options.both:
        saved = [_predictions(options.work, way) for way in _WAYS]
        if len({row.perplexity for row in rows}) > 1 or not filecmp.cmp(saved[0], saved[1], shallow=False):
            sys.exit("the two ways differ")
        print(f"The same predictions: {saved[0].stat().st_size} bytes each.")


if __name__ == "__main__":
    main()
