"""What a compact base (`--save-base`) costs in exactness: a section of bench.evaluate, in its own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench import tables
from bench.contest import Contest
from quantmill.measure.compare import run
from quantmill.measure.logits_file import LogitsFile, LogitsWriter
from quantmill.models.model import load

KS = (256, 1024, 2048)


@dataclass(frozen=True)
class Row:
    """Relative error of the mean KLD with k entries a position, and how much smaller the file is."""

    file: str
    k: int
    error: float
    smaller: float


COLUMNS = (
    tables.Column("file", "file"),
    tables.Column("k", "k", "{}"),
    tables.Column("KLD error %", "error", "{:+.3f}"),
    tables.Column("times smaller", "smaller", "{:.1f}"),
)


def rows(contest: Contest, model_path: Path, paths: list[Path]) -> list[Row]:
    """Divergences against compact bases of two chunks, beside those against the model itself."""
    folder, base = contest.folder, contest.base(contest.chunks)
    tokens = LogitsFile(base).tokens[:2]
    model = load(model_path)
    quants = [load(path) for path in paths]
    writers = {
        k: LogitsWriter(folder / f"base-{k}", tokens, model.n_vocab, k) for k in KS if k < model.n_vocab
    }
    full = run(model, quants, tokens, list(writers.values()))
    for writer in writers.values():
        writer.__exit__(None, None, None)
    made = []
    for k in writers:
        path = folder / f"base-{k}"
        found = run(LogitsFile(path), quants, tokens)
        for quant, scores, exact in zip(paths, found.scores, full.scores, strict=True):
            error = scores.kld.mean() / exact.kld.mean() - 1
            per_chunk = base.stat().st_size / contest.chunks
            made.append(Row(quant.name, k, 100 * error, per_chunk / (path.stat().st_size / 2)))
    return made
