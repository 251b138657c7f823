"""quantmill evaluate beside llama-perplexity: numbers, and tokens a second of processor time.

    python -m bench.evaluate BASE.gguf TEXT QUANT.gguf … --llama-perplexity PATH [--chunks 10] [--threads 1] [--out P]

Both score the same chunks, of quants against the same base, which llama-perplexity wrote. Whole commands take turns;
what the same command takes for two chunks is taken away for the rates ("start-up apart"). KLD is shown with float32
products, too. llama-perplexity rounds activations to 8 bits for quantized weights and quantmill does not; to see
whether that explains a difference, give the quant as float32 too (llama-quantize --allow-requantize QUANT.gguf
OUT.gguf F32).

Last: divergences of two files in one run with the base, beside llama-perplexity's run for the base and one for each.
--compact: what the compact base costs in exactness, in this process.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, process, tables

KS = (256, 1024, 2048)
FLAGS = ("--no-repack", "-c", "512")
_N_CTX, _FEW = 512, 2


@dataclass(frozen=True)
class Row:
    """One file. `theirs` is llama-perplexity's. rate: tokens a CPU second, start-up apart; cpu_s: of the whole command.

    kld_float32: with --dtype float32. ratio, whole: how many times theirs, median of the rounds.
    """

    file: str
    ppl: float
    ppl_theirs: float
    kld: float | None
    kld_theirs: float | None
    kld_float32: float | None
    same_top: float | None
    same_top_theirs: float | None
    rate: float
    rate_theirs: float
    ratio: float
    cpu_s: float
    cpu_s_theirs: float
    whole: float
    memory_mib: float
    memory_mib_theirs: float


@dataclass(frozen=True)
class Together:
    """Two files and the base: CPU seconds of our command, of llama-perplexity's run that writes the base's predictions,
    and of its two that compare."""

    files: str
    cpu_s: float
    base_s: float
    two_s: float
    ratio_of_two: float
    ratio_of_three: float


@dataclass(frozen=True)
class CompactRow:
    """Relative error of the mean KLD with k entries a position, and how much smaller the file is."""

    file: str
    k: int
    error: float
    smaller: float


@dataclass(frozen=True)
class Used:
    """A command for the few chunks and for all: CPU seconds, memory of the latter."""

    few_s: float
    all_s: float
    peak_bytes: int


class Contest:
    """The two programs on one text, in a folder for what they write."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.n_tokens = (options.chunks - _FEW) * _N_CTX
        threads = ("-t", str(options.threads))
        self._llama = [str(options.llama_perplexity), *FLAGS, *threads]
        self._ours = [sys.executable, "-m", "quantmill", "evaluate", "--threads", str(options.threads)]

    def base(self, chunks: int) -> Path:
        return self.folder / f"base-{chunks}.logits"

    def record(self, *words: str) -> tuple[process.Usage, dict[str, Any]]:
        """Our command with these words, and the record that it writes."""
        said = self.folder / "run.json"
        used = process.run([*self._ours, *words, "-o", str(said), "--force"])
        found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
        return used, found

    def theirs(self, *words: str) -> tuple[process.Usage, str]:
        """llama-perplexity with these words, and what it prints."""
        said = self.folder / "printed.txt"
        used = process.run([*self._llama, *words], said)
        return used, said.read_text(encoding="utf-8", errors="replace")

    def write_base(self, chunks: int) -> process.Usage:
        text = ("-f", str(self.options.text), "--chunks", str(chunks))
        return self.theirs(
            "-m", str(self.options.base), *text, "--kl-divergence-base", str(self.base(chunks))
        )[0]

    def rounds(self, ours: Callable[[int], process.Usage], theirs: Callable[[int], process.Usage]) -> Any:
        """Each for few and all chunks, in turns: two lists of what was used."""
        found: tuple[list[Used], list[Used]] = ([], [])
        for _ in range(self.options.rounds):
            for run, into in zip((ours, theirs), found, strict=True):
                few, whole = run(_FEW), run(self.options.chunks)
                into.append(Used(few.cpu_s, whole.cpu_s, whole.peak_bytes))
        return found

    def costs(self, ours: list[Used], theirs: list[Used]) -> dict[str, float]:
        """The fields of a Row that say what was used."""
        pairs = list(zip(ours, theirs, strict=True))
        middle = statistics.median
        return {
            "rate": middle(self.n_tokens / (one.all_s - one.few_s) for one in ours),
            "rate_theirs": middle(self.n_tokens / (one.all_s - one.few_s) for one in theirs),
            "ratio": middle((b.all_s - b.few_s) / (a.all_s - a.few_s) for a, b in pairs),
            "cpu_s": middle(one.all_s for one in ours),
            "cpu_s_theirs": middle(one.all_s for one in theirs),
            "whole": middle(b.all_s / a.all_s for a, b in pairs),
            "memory_mib": max(one.peak_bytes for one in ours) / (1 << 20),
            "memory_mib_theirs": max(one.peak_bytes for one in theirs) / (1 << 20),
        }


def alone(contest: Contest, path: Path) -> Row:
    """The perplexity of one file, without a base."""
    said: dict[str, Any] = {}

    def ours(chunks: int) -> process.Usage:
        used, said["ours"] = contest.record(
            str(path), "--text", str(contest.options.text), "--chunks", str(chunks)
        )
        return used

    def theirs(chunks: int) -> process.Usage:
        words = ("-m", str(path), "-f", str(contest.options.text), "--chunks", str(chunks))
        used, said["theirs"] = contest.theirs(*words)
        return used

    costs = contest.costs(*contest.rounds(ours, theirs))
    ppl = said["ours"]["models"][0]["ppl"]["value"]
    ppl_theirs = float(_first(r"Final estimate: PPL = ([\d.]+)", said["theirs"]))
    return Row(path.name, ppl, ppl_theirs, None, None, None, None, None, **costs)


def compared(contest: Contest, path: Path) -> Row:
    """A quant against the base."""
    said: dict[str, Any] = {}

    def ours(chunks: int) -> process.Usage:
        used, said["ours"] = contest.record(str(path), "--base-file", str(contest.base(chunks)))
        return used

    def theirs(chunks: int) -> process.Usage:
        words = ("-m", str(path), "--kl-divergence-base", str(contest.base(chunks)), "--kl-divergence")
        used, said["theirs"] = contest.theirs(*words)
        return used

    costs = contest.costs(*contest.rounds(ours, theirs))
    words = (str(path), "--base-file", str(contest.base(contest.options.chunks)), "--dtype", "float32")
    exact = contest.record(*words)[1]["models"][0]["divergence"]
    found = said["ours"]["models"][0]["divergence"]
    ppl, kld, top = (
        float(_first(rf"{label}\s*:\s+(-?[\d.]+)", said["theirs"]))
        for label in (r"Mean PPL\(Q\)", "Mean    KLD", "Same top p")
    )
    return Row(
        file=path.name,
        ppl=found["ppl"]["value"],
        ppl_theirs=ppl,
        kld=found["kld"]["value"],
        kld_theirs=kld,
        kld_float32=exact["kld"]["value"],
        same_top=100 * found["same_top"]["value"],
        same_top_theirs=top,
        **costs,
    )


def together(contest: Contest, paths: list[Path]) -> Together:
    options = contest.options
    ours, base, two = [], [], []
    words = ("--base", str(options.base), "--text", str(options.text), "--chunks", str(options.chunks))
    for _ in range(options.rounds):
        ours.append(contest.record(*map(str, paths), *words)[0].cpu_s)
        base.append(contest.write_base(options.chunks).cpu_s)
        against = ("--kl-divergence-base", str(contest.base(options.chunks)), "--kl-divergence")
        two.append(sum(contest.theirs("-m", str(path), *against)[0].cpu_s for path in paths))
    middle = statistics.median
    return Together(
        files=", ".join(path.name for path in paths),
        cpu_s=middle(ours),
        base_s=middle(base),
        two_s=middle(two),
        ratio_of_two=middle(b / a for a, b in zip(ours, two, strict=True)),
        ratio_of_three=middle((b + c) / a for a, b, c in zip(ours, base, two, strict=True)),
    )


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"llama-perplexity printed nothing like {pattern}")
    return match[1]


def compact(contest: Contest) -> list[CompactRow]:
    """Divergences against compact bases of two chunks, beside those against the model itself."""
    from quantmill.measure.compare import run
    from quantmill.measure.logits_file import LogitsFile, LogitsWriter
    from quantmill.models.model import load

    options, folder = contest.options, contest.folder
    base = contest.base(options.chunks)
    tokens = LogitsFile(base).tokens[:2]
    model = load(options.base)
    quants = [load(path) for path in options.quants]
    writers = {
        k: LogitsWriter(folder / f"base-{k}", tokens, model.n_vocab, k) for k in KS if k < model.n_vocab
    }
    full = run(model, quants, tokens, list(writers.values()))
    for writer in writers.values():
        writer.__exit__(None, None, None)
    rows = []
    for k in writers:
        path = folder / f"base-{k}"
        found = run(LogitsFile(path), quants, tokens)
        for quant, scores, exact in zip(options.quants, found.scores, full.scores, strict=True):
            error = scores.kld.mean() / exact.kld.mean() - 1
            per_chunk = base.stat().st_size / options.chunks
            rows.append(CompactRow(quant.name, k, 100 * error, per_chunk / (path.stat().st_size / 2)))
    return rows


_NUMBERS = (
    tables.Column("file", "file"),
    tables.Column("PPL", "ppl", "{:.4f}"),
    tables.Column("llama.cpp", "ppl_theirs", "{:.4f}"),
    tables.Column("KLD", "kld", "{:.6f}"),
    tables.Column("float32", "kld_float32", "{:.6f}"),
    tables.Column("llama.cpp", "kld_theirs", "{:.6f}"),
    tables.Column("same top %", "same_top", "{:.2f}"),
    tables.Column("llama.cpp", "same_top_theirs", "{:.2f}"),
)
_COSTS = (
    tables.Column("file", "file"),
    tables.Column("tokens a CPU s", "rate", "{:.0f}"),
    tables.Column("llama.cpp", "rate_theirs", "{:.0f}"),
    tables.Column("ratio, start-up apart", "ratio", "{:.2f} ×"),
    tables.Column("whole command, CPU s", "cpu_s", "{:.1f}"),
    tables.Column("llama.cpp", "cpu_s_theirs", "{:.1f}"),
    tables.Column("ratio", "whole", "{:.2f} ×"),
    tables.Column("memory, MiB", "memory_mib", "{:.0f}"),
    tables.Column("llama.cpp", "memory_mib_theirs", "{:.0f}"),
)
_TOGETHER = (
    tables.Column("files", "files"),
    tables.Column("one run, CPU s", "cpu_s", "{:.1f}"),
    tables.Column("llama.cpp's base", "base_s", "{:.1f}"),
    tables.Column("its two", "two_s", "{:.1f}"),
    tables.Column("of its two", "ratio_of_two", "{:.2f} ×"),
    tables.Column("of all three", "ratio_of_three", "{:.2f} ×"),
)
_COMPACT = (
    tables.Column("file", "file"),
    tables.Column("k", "k", "{}"),
    tables.Column("KLD error %", "error", "{:+.3f}"),
    tables.Column("times smaller", "smaller", "{:.1f}"),
)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("quants", type=Path, nargs="+")
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compact", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if options.chunks <= _FEW:
        print(f"--chunks {options.chunks}: more than {_FEW} are needed.", file=sys.stderr)
        return 2
    here = machine.describe("bench.evaluate", arguments)
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(options, Path(folder))
        for chunks in (_FEW, options.chunks):
            contest.write_base(chunks)
        rows = [alone(contest, options.base), *(compared(contest, path) for path in options.quants)]
        pairs = [together(contest, options.quants[:2])] if len(options.quants) > 1 else []
        compacts = compact(contest) if options.compact else []
    parts = [
        tables.heading("Evaluation", here),
        tables.markdown(_NUMBERS, rows),
        "",
        tables.markdown(_COSTS, rows),
    ]
    if pairs:
        parts += ["", "## Two files and the base", "", tables.markdown(_TOGETHER, pairs)]
    if compacts:
        parts += ["", "## Compact base", "", tables.markdown(_COMPACT, compacts)]
    report = "\n".join([*parts, ""])
    print(report)
    if options.out is not None:
        tables.save(options.out, report, tables.as_json(here, [*rows, *pairs, *compacts]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
