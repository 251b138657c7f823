"""quantmill evaluate beside llama-perplexity: numbers, and tokens a second of processor time.

    python -m bench.evaluate BASE.gguf TEXT QUANT.gguf … --llama-perplexity PATH [--chunks 10] [--threads 1 2] [--out P]

Both score the same chunks, of quants against the same base, which llama-perplexity wrote. Whole commands take turns;
what the same command takes for three chunks is taken away for the rates ("start-up apart"). Ratios of processor seconds
bear a machine that does other work, too; those of wall time hardly. KLD is shown with float32 products, too.
llama-perplexity rounds activations to 8 bits for quantized weights and quantmill does not; to see whether that explains
a difference, give the quant as float32 too (llama-quantize --allow-requantize QUANT.gguf OUT.gguf F32).

Last: divergences of two files in one run with the base, and with the base's predictions from its file, beside
llama-perplexity's run for the base and one for each. --compact: what the compact base costs in exactness, in this
process.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import compact, machine, process, tables
from bench.contest import FEW, Contest, Costs, Used, costs, used


@dataclass(frozen=True)
class Row:
    """Numbers of one file. `theirs` is llama-perplexity's. kld_float32: with --dtype float32."""

    file: str
    ppl: float
    ppl_theirs: float
    kld: float | None = None
    kld_theirs: float | None = None
    kld_float32: float | None = None
    same_top: float | None = None
    same_top_theirs: float | None = None


@dataclass(frozen=True)
class CostRow(Costs):
    """What one file costs with so many threads."""

    file: str
    threads: int


@dataclass(frozen=True)
class Together:
    """Two files against the base, processor seconds of whole commands: ours in one run with the base, ours with the
    base's file; llama-perplexity's run that writes that file, its two that read it.

    Ratios, start-up apart: of its two runs to ours with the file, of its two to our one run, of all three to our one.
    """

    files: str
    threads: int
    one_s: float
    file_s: float
    base_s: float
    two_s: float
    two_of_file: float
    two_of_one: float
    three_of_one: float
    whole: float


def alone(contest: Contest, path: Path, rounds: int) -> tuple[Row, CostRow]:
    """The perplexity of one file, without a base."""
    said: dict[str, Any] = {}
    text = str(contest.text)

    def ours(chunks: int) -> list[process.Usage]:
        usage, said["ours"] = contest.record(str(path), "--text", text, "--chunks", str(chunks))
        return [usage]

    def theirs(chunks: int) -> list[process.Usage]:
        usage, said["theirs"] = contest.theirs("-m", str(path), "-f", text, "--chunks", str(chunks))
        return [usage]

    cost = _costs(contest, path, [ours, theirs], rounds)
    # after each chunk, of all until then
    ppl_theirs = float(_last(r"\[\d+\]([\d.]+),", said["theirs"]))
    return Row(path.name, said["ours"]["models"][0]["ppl"]["value"], ppl_theirs), cost


def compared(contest: Contest, path: Path, rounds: int, exactly: bool) -> tuple[Row, CostRow]:
    """A quant against the base; exactly: with float32 products, too."""
    said: dict[str, Any] = {}

    def ours(chunks: int) -> list[process.Usage]:
        usage, said["ours"] = contest.record(str(path), "--base-file", str(contest.base(chunks)))
        return [usage]

    def theirs(chunks: int) -> list[process.Usage]:
        usage, said["theirs"] = contest.compared(path, chunks)
        return [usage]

    cost = _costs(contest, path, [ours, theirs], rounds)
    exact = None
    if exactly:
        words = (str(path), "--base-file", str(contest.base(contest.chunks)), "--dtype", "float32")
        exact = contest.record(*words)[1]["models"][0]["divergence"]["kld"]["value"]
    found = said["ours"]["models"][0]["divergence"]
    ppl, kld, top = (
        float(_last(rf"{label}\s*:\s+(-?[\d.]+)", said["theirs"]))
        for label in (r"Mean PPL\(Q\)", "Mean    KLD", "Same top p")
    )
    row = Row(
        file=path.name,
        ppl=found["ppl"]["value"],
        ppl_theirs=ppl,
        kld=found["kld"]["value"],
        kld_theirs=kld,
        kld_float32=exact,
        same_top=100 * found["same_top"]["value"],
        same_top_theirs=top,
    )
    return row, cost


def _costs(contest: Contest, path: Path, runs: list[Any], rounds: int) -> CostRow:
    """Ours and theirs in turns."""
    turns = [[used(run, contest.chunks) for run in runs] for _ in range(rounds)]
    ours, theirs = zip(*turns, strict=True)
    found = costs(ours, theirs, contest.n_tokens)
    return CostRow(**asdict(found), file=path.name, threads=contest.threads)


def together(contest: Contest, model: Path, paths: list[Path], rounds: int) -> Together:
    files = [str(path) for path in paths]

    def one(chunks: int) -> list[process.Usage]:
        words = ("--base", str(model), "--text", str(contest.text), "--chunks", str(chunks))
        return [contest.record(*files, *words)[0]]

    def with_file(chunks: int) -> list[process.Usage]:
        return [contest.record(*files, "--base-file", str(contest.base(chunks)))[0]]

    def base(chunks: int) -> list[process.Usage]:
        return [contest.write_base(model, chunks)]

    def two(chunks: int) -> list[process.Usage]:
        return [contest.compared(path, chunks)[0] for path in paths]

    turns = [[used(run, contest.chunks) for run in (one, with_file, base, two)] for _ in range(rounds)]
    ones, with_files, bases, twos = zip(*turns, strict=True)
    middle = statistics.median

    def whole(column: tuple[Used, ...]) -> float:
        return middle(turn.cpu_s for turn in column)

    return Together(
        files=", ".join(path.name for path in paths),
        threads=contest.threads,
        one_s=whole(ones),
        file_s=whole(with_files),
        base_s=whole(bases),
        two_s=whole(twos),
        two_of_file=middle(b.more_cpu_s / a.more_cpu_s for a, b in zip(with_files, twos, strict=True)),
        two_of_one=middle(b.more_cpu_s / a.more_cpu_s for a, b in zip(ones, twos, strict=True)),
        three_of_one=middle((b.more_cpu_s + c.more_cpu_s) / a.more_cpu_s for a, _, b, c in turns),
        whole=middle((b.cpu_s + c.cpu_s) / a.cpu_s for a, _, b, c in turns),
    )


def _last(pattern: str, text: str) -> str:
    found: list[str] = re.findall(pattern, text)
    if not found:
        raise RuntimeError(f"llama-perplexity printed nothing like {pattern}")
    return found[-1]


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
    tables.Column("threads", "threads", "{:d}"),
    tables.Column("tokens a CPU s", "rate", "{:.0f}"),
    tables.Column("llama.cpp", "rate_theirs", "{:.0f}"),
    tables.Column("ratio, start-up apart", "ratio", "{:.2f} ×"),
    tables.Column("of wall time", "wall_ratio", "{:.2f} ×"),
    tables.Column("whole command, CPU s", "cpu_s", "{:.1f}"),
    tables.Column("llama.cpp", "cpu_s_theirs", "{:.1f}"),
    tables.Column("ratio", "whole", "{:.2f} ×"),
    tables.Column("memory, MiB", "memory_mib", "{:.0f}"),
    tables.Column("llama.cpp", "memory_mib_theirs", "{:.0f}"),
)
_TOGETHER = (
    tables.Column("files", "files"),
    tables.Column("threads", "threads", "{:d}"),
    tables.Column("one run, CPU s", "one_s", "{:.1f}"),
    tables.Column("with the base's file", "file_s", "{:.1f}"),
    tables.Column("llama.cpp's base", "base_s", "{:.1f}"),
    tables.Column("its two", "two_s", "{:.1f}"),
    tables.Column("its two to ours with the file", "two_of_file", "{:.2f} ×"),
    tables.Column("its two to our one", "two_of_one", "{:.2f} ×"),
    tables.Column("its three to our one", "three_of_one", "{:.2f} ×"),
    tables.Column("its three to our one, start-up included", "whole", "{:.2f} ×"),
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
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compact", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if options.chunks <= FEW:
        print(f"--chunks {options.chunks}: more than {FEW} are needed.", file=sys.stderr)
        return 2
    here = machine.describe("bench.evaluate", arguments)
    rows: list[Row] = []
    paid: list[CostRow] = []
    pairs: list[Together] = []
    compacts: list[compact.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for threads in options.threads:
            first = threads == options.threads[0]
            contest = Contest(options.llama_perplexity, options.text, options.chunks, threads, Path(folder))
            if first:  # numbers do not depend on threads
                for chunks in (FEW, options.chunks):
                    contest.write_base(options.base, chunks)
            found = [
                alone(contest, options.base, options.rounds),
                *(compared(contest, path, options.rounds, first) for path in options.quants),
            ]
            rows += [row for row, _ in found] if first else []
            paid += [cost for _, cost in found]
            if len(options.quants) > 1:
                pairs.append(together(contest, options.base, options.quants[:2], options.rounds))
        if options.compact:
            compacts = compact.rows(contest, options.base, options.quants)
    parts = [
        tables.heading("Evaluation", here),
        tables.markdown(_NUMBERS, rows),
        "",
        tables.markdown(_COSTS, paid),
    ]
    if pairs:
        parts += ["", "## Two files and the base", "", tables.markdown(_TOGETHER, pairs)]
    if compacts:
        parts += ["", "## Compact base", "", tables.markdown(compact.COLUMNS, compacts)]
    report = "\n".join([*parts, ""])
    print(report)
    if options.out is not None:
        tables.save(options.out, report, tables.as_json(here, [*rows, *paid, *pairs, *compacts]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
