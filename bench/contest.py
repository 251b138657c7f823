"""quantmill evaluate and llama-perplexity on one text: both programs run, and what they use.

Each runs for a few chunks and for all: what the few take is taken away for rates ("start-up apart").
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import process

FEW = 3  # llama-perplexity says nothing of two
_N_CTX = 512
FLAGS = ("--no-repack", "-c", str(_N_CTX))


@dataclass(frozen=True)
class Used:
    """A command for the few chunks and for all: processor and wall seconds; memory of the latter."""

    few_cpu_s: float
    few_wall_s: float
    cpu_s: float
    wall_s: float
    peak_bytes: int

    @property
    def more_cpu_s(self) -> float:
        """What more chunks than the few took."""
        return self.cpu_s - self.few_cpu_s

    @property
    def more_wall_s(self) -> float:
        return self.wall_s - self.few_wall_s


def used(run: Callable[[int], Sequence[process.Usage]], chunks: int) -> Used:
    """`run` makes one command or several, one after the other, for a number of chunks."""
    few, whole = run(FEW), run(chunks)
    return Used(
        few_cpu_s=sum(one.cpu_s for one in few),
        few_wall_s=sum(one.wall_s for one in few),
        cpu_s=sum(one.cpu_s for one in whole),
        wall_s=sum(one.wall_s for one in whole),
        peak_bytes=max(one.peak_bytes for one in whole),
    )


@dataclass(frozen=True)
class Costs:
    """Two programs' work on the same chunks. rate: tokens a processor second, start-up apart; wall_ratio: of the
    tokens a second; whole: of the commands' processor seconds. Ratios say how many times theirs, median of the rounds.
    """

    rate: float
    rate_theirs: float
    ratio: float
    wall_ratio: float
    cpu_s: float
    cpu_s_theirs: float
    whole: float
    memory_mib: float
    memory_mib_theirs: float


def costs(ours: Sequence[Used], theirs: Sequence[Used], n_tokens: int) -> Costs:
    """n_tokens: of all chunks but the few. A used and the other's at the same place are of one round."""
    pairs = list(zip(ours, theirs, strict=True))
    middle = statistics.median
    return Costs(
        rate=middle(n_tokens / one.more_cpu_s for one in ours),
        rate_theirs=middle(n_tokens / one.more_cpu_s for one in theirs),
        ratio=middle(b.more_cpu_s / a.more_cpu_s for a, b in pairs),
        wall_ratio=middle(b.more_wall_s / a.more_wall_s for a, b in pairs),
        cpu_s=middle(one.cpu_s for one in ours),
        cpu_s_theirs=middle(one.cpu_s for one in theirs),
        whole=middle(b.cpu_s / a.cpu_s for a, b in pairs),
        memory_mib=max(one.peak_bytes for one in ours) / (1 << 20),
        memory_mib_theirs=max(one.peak_bytes for one in theirs) / (1 << 20),
    )


class Contest:
    """The two programs on one text with so many threads, in a folder for what they write."""

    def __init__(self, perplexity: Path, text: Path, chunks: int, threads: int, folder: Path) -> None:
        self.text, self.chunks, self.threads, self.folder = text, chunks, threads, folder
        self.n_tokens = (chunks - FEW) * _N_CTX
        self._llama = [str(perplexity.absolute()), *FLAGS, "-t", str(threads)]
        self._ours = [sys.executable, "-m", "quantmill", "evaluate", "--threads", str(threads)]

    def base(self, chunks: int) -> Path:
        """llama-perplexity's file of the base's predictions, which write_base() makes."""
        return self.folder / f"base-{chunks}.logits"

    def record(self, *words: str) -> tuple[process.Usage, dict[str, Any]]:
        """Our command with these words, and the record that it writes."""
        said = self.folder / "run.json"
        usage = process.run([*self._ours, *words, "-o", str(said), "--force"])
        found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
        return usage, found

    def theirs(self, *words: str) -> tuple[process.Usage, str]:
        """llama-perplexity with these words, and what it prints."""
        said = self.folder / "printed.txt"
        usage = process.run([*self._llama, *words], said)
        return usage, said.read_text(encoding="utf-8", errors="replace")

    def write_base(self, model: Path, chunks: int) -> process.Usage:
        text = ("-f", str(self.text), "--chunks", str(chunks))
        return self.theirs("-m", str(model), *text, "--kl-divergence-base", str(self.base(chunks)))[0]

    def compared(self, model: Path, chunks: int) -> tuple[process.Usage, str]:
        """llama-perplexity's divergences of a model from the base."""
        return self.theirs(
            "-m", str(model), "--kl-divergence-base", str(self.base(chunks)), "--kl-divergence"
        )
