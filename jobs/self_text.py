"""A calibration text that the model writes itself, for those without network or data.

Sequences are sampled at several temperatures; where the model has a chat template, every other group of them begins
where a user would speak, so that both sides of a conversation are in it. Seeded, and on one thread: the same model
gives the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantmill.gguf_io import Metadata, open_source
from quantmill.gguf_io.partial import resolved, write_whole
from quantmill.imatrix.chat import from_metadata
from quantmill.imatrix.matrix import ImatrixError
from quantmill.jobs.watcher import Watcher
from quantmill.models.devices import usable_device
from quantmill.models.model import from_source
from quantmill.models.sampling import sample, text_of_tokens
from quantmill.models.tokenizer import Tokenizer
from quantmill.models.workers import working

TEMPERATURES = (0.7, 1.0, 1.3)
SEQUENCE, TOGETHER = 512, 16  # tokens of a sequence; sequences sampled side by side
SEED = 1
VERSION = 1  # of the sampling; another one gives another text
_PART = "part-"  # begins the name of a group's file
_MARK = "\ue000"  # stands for what a user says


def self_text(model: Path, device: str, n_tokens: int, folder: Path, watcher: Watcher) -> str:
    """At least n_tokens of the model's own. Raises ModelError for a model that cannot be run.

    folder: where each group of sequences stays as soon as it is written, and is found by a run that goes on.
    """
    import torch

    n_sequences = -(-n_tokens // SEQUENCE)
    groups = [range(i, min(i + TOGETHER, n_sequences)) for i in range(0, n_sequences, TOGETHER)]
    source = open_source(model)
    loaded = from_source(source, model, usable_device(device), torch.float32)
    try:
        starts = _starts(source.metadata, loaded.tokenizer)
        parts = []
        watcher.began("the model's own text", n_sequences, "chunks")
        with working(1, loaded.device.type):
            for i, group in enumerate(groups):
                temperature = TEMPERATURES[i % len(TEMPERATURES)]
                start = starts[i // len(TEMPERATURES) % len(starts)]
                seeds = [(SEED, sequence) for sequence in group]
                place = folder / f"{_PART}{i}.txt"
                if not place.exists():
                    found = sample(loaded, start, seeds, temperature, SEQUENCE)
                    texts = [text_of_tokens(source.metadata, ids.tolist()).strip() for ids in found]
                    write_whole(resolved(place), "\n\n".join(texts).encode())
                parts.append(place.read_bytes().decode())
                watcher.progressed(len(group), f"temperature {temperature}")
    finally:
        loaded.close()
    return "\n\n".join(parts) + "\n"


def remove_parts(folder: Path) -> None:
    """What `self_text` left there."""
    for part in folder.glob(f"{_PART}*.txt"):
        part.unlink()


def _starts(metadata: Metadata, tokenizer: Tokenizer) -> Sequence[Sequence[int]]:
    """What sequences begin with: nothing but BOS, and what a chat template puts in front of a user's words."""
    first = [token for token in (tokenizer.bos, tokenizer.eos) if token is not None][:1]
    starts = [first or tokenizer.encode("\n", add_special=False)]
    try:
        rendered = from_metadata(metadata, "the model")([{"role": "user", "content": _MARK}])
    except ImatrixError:  # no template, or one that wants more than a user
        return starts
    before = rendered.partition(_MARK)[0]
    ids = tokenizer.encode(before, add_special=False, parse_special=True)
    return [*starts, ids] if ids else starts
