"""Tokens per second while collecting, beside the same forward pass without hooks and beside llama-imatrix.

    python bench/imatrix.py MODEL.gguf TEXT [--llama-imatrix BIN] [--chunks 16] [--threads 1] [--rounds 3]

All three run the same chunks with the same threads in turn, round after round; the median counts. MODEL is what
llama-imatrix reads (its time includes loading it: less than a second for a small model); --hf gives the same
model as a Hugging Face directory for the torch side. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from imatrix import collect as collecting
from imatrix.text import Cutting, Text, chunks_of, read_text
from measure.model import LoadedModel, load


def with_hooks(loaded: LoadedModel, chunks: object, settings: collecting.Settings) -> float:
    result = collecting.Result()
    *_, last = collecting.collect(loaded.model, loaded.table, chunks, settings, result)  # type: ignore[arg-type]
    return last.seconds


def without_hooks(loaded: LoadedModel, chunks: object, settings: collecting.Settings) -> float:
    begin = time.perf_counter()
    n_chunk, n_ctx = chunks.shape  # type: ignore[attr-defined]
    step = max(1, collecting.BATCH_TOKENS // n_ctx)
    for i in range(0, n_chunk, step):
        collecting._run(loaded.model, chunks[i : i + step], settings, loaded.device)  # type: ignore[index]
    return time.perf_counter() - begin


def llama_imatrix(binary: str, model: str, text: str, chunks: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        command = [
            binary, "-m", model, "-f", text, "-o", f"{directory}/o.gguf", "--chunks", str(chunks),
            "-c", "512", "-t", str(threads), "-tb", str(threads),
        ]  # fmt: skip
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--hf", help="Hugging Face directory of the same model, for the torch side")
    parser.add_argument("--llama-imatrix")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load(given.hf or given.model)
    tokens = loaded.tokenizer.encode(read_text(Path(given.text)))
    chunks = chunks_of([(Text(Path(given.text)), tokens)], Cutting(n_chunks=given.chunks))
    settings = collecting.Settings(bos=loaded.tokenizer.bos if loaded.tokenizer.add_bos else None)
    without_hooks(loaded, chunks[:4], settings)
    seconds: dict[str, list[float]] = {"collect": [], "plain forward": []}
    for _ in range(given.rounds):
        seconds["plain forward"].append(without_hooks(loaded, chunks, settings))
        seconds["collect"].append(with_hooks(loaded, chunks, settings))
        if given.llama_imatrix:
            theirs = llama_imatrix(given.llama_imatrix, given.model, given.text, len(chunks), given.threads)
            seconds.setdefault("llama-imatrix", []).append(theirs)
    rates = {name: round(chunks.size / statistics.median(times), 1) for name, times in seconds.items()}
    print(
        json.dumps(
            {
                "model": given.hf or given.model,
                "threads": given.threads,
                "chunks": len(chunks),
                "tokens_per_second": rates,
                "seconds": {name: [round(t, 2) for t in times] for name, times in seconds.items()},
            },
            ensure_ascii=False,
        )
    )


if __name__ == "__main__":
    main()
