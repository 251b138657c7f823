"""Tokens per second while collecting, beside the same forward pass without hooks and beside llama-imatrix.

    python bench/imatrix.py MODEL.gguf TEXT [--llama-imatrix BIN] [--chunks 16] [--threads 1] [--rounds 3]

All three run the same chunks with the same threads in turn, round after round; the median counts. MODEL is what
llama-imatrix reads (its time includes loading it: less than a second for a small model); --hf gives the same
model as a Hugging Face directory for the torch side. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from quantmill.imatrix import collect as collecting
from quantmill.imatrix.text import Cutting, Text, chunks_of, read_text
from quantmill.models.model import LoadedModel, load


def with_hooks(loaded: LoadedModel, chunks: np.ndarray, settings: collecting.Settings) -> None:
    for _ in collecting.collect(loaded.model, loaded.table, chunks, settings, collecting.Result()):
        pass


def without_hooks(loaded: LoadedModel, chunks: np.ndarray, settings: collecting.Settings) -> None:
    step = max(1, collecting.BATCH_TOKENS // chunks.shape[1])
    for i in range(0, len(chunks), step):
        collecting._run(loaded.model, chunks[i : i + step], settings, loaded.device)


def llama_imatrix(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        command = [
            given.llama_imatrix, "-m", given.model, "-f", given.text, "-o", f"{directory}/o.gguf", "-c", "512",
            "--chunks", str(given.chunks), "-t", str(given.threads), "-tb", str(given.threads),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, check=True)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds; the latter hardly suffer from other work on the machine."""
    begin, before = time.perf_counter(), os.times()
    run()
    after = os.times()
    spent = sum(after[:4]) - sum(before[:4])  # of this process and of those it waited for
    return time.perf_counter() - begin, spent


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
    runs: dict[str, Callable[[], None]] = {
        "plain forward": lambda: without_hooks(loaded, chunks, settings),
        "collect": lambda: with_hooks(loaded, chunks, settings),
    }
    if given.llama_imatrix:
        runs["llama-imatrix"] = lambda: llama_imatrix(given)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            times[name].append(timed(run))
    record = {"model": given.hf or given.model, "threads": given.threads, "chunks": len(chunks)}
    for i, clock in enumerate(("wall", "cpu")):
        medians = {name: statistics.median(pair[i] for pair in pairs) for name, pairs in times.items()}
        record[f"tokens_per_second_{clock}"] = {
            name: round(chunks.size / t, 1) for name, t in medians.items()
        }
        record[f"seconds_{clock}"] = {
            name: [round(pair[i], 2) for pair in pairs] for name, pairs in times.items()
        }
    print(json.dumps(record, ensure_ascii=False))


if __name__ == "__main__":
    main()
