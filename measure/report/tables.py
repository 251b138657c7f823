"""The tables of a report, once for the page and for the card: a head and rows of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantmill.errors import counted
from quantmill.measure.perplexity import Estimate
from quantmill.measure.record import ModelResult
from quantmill.measure.report.collect import Report

SURE = 0.05  # p-value below which a difference is called one
MEMORY_GB = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 512, 1024, 2048)
CONTEXT_SHARE = 1.2  # memory wanted for each byte of the file: a sixth of it holds the context and buffers


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def size(n_bytes: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes / 1024:.1f} KiB"


def number(value: float, digits: int) -> str:
    """A number as tables show it; "–" where it is not known."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def plus_minus(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return ""
    return f"{number(estimate.value, digits)} ± {number(estimate.error, digits)}"


def quality(report: Report) -> Table | None:
    """Perplexity and divergence; None when no text was scored."""
    results = [r for r in report.results if r.ppl is not None]
    if not results:
        return None
    divergent = any(r.divergence for r in results)
    # The number that decides comes first, so that a narrow screen shows it.
    head = ["model", *(["KLD mean"] if divergent else []), "size", "bpw", "PPL"]
    head += ["ρ PPL %", "ln PPL ratio", "RMS Δp %", "same top %"] if divergent else []
    rows = []
    for result in results:
        file, d = result.file, result.divergence
        row = [file.name, *([plus_minus(d.kld if d else None, 6)] if divergent else [])]
        row += [size(file.bytes), f"{file.bits_per_weight:.2f}", plus_minus(result.ppl, 4)]
        if d is not None:
            row += [
                "–" if d.correlation is None else number(100 * d.correlation, 2),
                plus_minus(d.ln_ratio, 5),
                plus_minus(d.p_diff_rms.scaled(100), 3),
                plus_minus(d.same_top.scaled(100), 2),
            ]
        rows.append(tuple(row + [""] * (len(head) - len(row))))
    return Table(tuple(head), tuple(rows))


def choices(report: Report) -> Table:
    """The best file for a card or a machine by its memory, of which a sixth is left for the context.

    Best is the least divergence, else the least perplexity, else the largest file. Sizes at which the choice stays
    the same are left out; so are those that nothing fits.
    """

    def loss(result: ModelResult) -> float:
        if result.divergence is not None:
            return result.divergence.kld.value
        return result.ppl.value if result.ppl is not None else -result.file.bytes

    rows: list[tuple[str, ...]] = []
    for memory in MEMORY_GB:
        fitting = [r for r in report.models if r.file.bytes * CONTEXT_SHARE <= memory * 10**9]
        if fitting:
            best = min(fitting, key=loss)
            if not rows or rows[-1][1] != best.file.name:
                rows.append((f"{memory} GB", best.file.name, size(best.file.bytes)))
    return Table(("memory", "file", "size"), tuple(rows))


def percentiles(report: Report) -> Table | None:
    """The distribution of the divergence over tokens."""
    results = [r for r in report.models if r.divergence is not None]
    if not results or results[0].divergence is None:
        return None
    shown = tuple(results[0].divergence.kld_percentiles)
    head = ("KLD at", "max", *(f"{p:g} %" for p in shown))
    rows = []
    for result in results:
        if result.divergence is not None:
            values = (result.divergence.kld_max, *result.divergence.kld_percentiles.values())
            rows.append((result.file.name, *(number(max(value, 0.0), 5) for value in values)))
    return Table(head, tuple(rows))


def tasks(report: Report) -> Table | None:
    """Accuracy by task, and the harness's metrics."""
    kinds = list(dict.fromkeys(task.kind for r in report.results for task in r.tasks))
    metrics = list(dict.fromkeys(metric for r in report.results for metric in r.lm_eval or {}))
    if not kinds and not metrics:
        return None
    chance = {task.kind: task.chance for r in report.results for task in r.tasks}
    counts = {task.kind: len(task.right) for r in report.results for task in r.tasks}
    means = ["mean"] if len(kinds) > 1 else []
    head = ("model", *(f"{kind} % (n = {counts[kind]})" for kind in kinds), *means, *metrics)
    rows = [
        (
            r.file.name,
            *(_accuracy(r, kind) for kind in kinds),
            *(_mean_accuracy(r, kinds) for _ in means),
            *(_metric(r, metric) for metric in metrics),
        )
        for r in report.results
        if r.tasks or r.lm_eval
    ]
    if kinds:
        by_chance = [f"{100 * chance[kind]:.2f}" for kind in kinds]
        rows.append(("chance", *by_chance, *("" for _ in (*means, *metrics))))
    return Table(head, tuple(rows))


def _accuracy(result: ModelResult, kind: str) -> str:
    return next((plus_minus(task.accuracy.scaled(100), 2) for task in result.tasks if task.kind == kind), "")


def _mean_accuracy(result: ModelResult, kinds: Sequence[str]) -> str:
    found = [task.accuracy.value for task in result.tasks if task.kind in kinds]
    return f"{100 * sum(found) / len(found):.2f}" if len(found) == len(kinds) else ""


def _metric(result: ModelResult, metric: str) -> str:
    return number(result.lm_eval[metric], 4) if result.lm_eval and metric in result.lm_eval else ""


def speeds(report: Report) -> Table | None:
    """Tokens per second, mean ± standard deviation."""
    tests = list(dict.fromkeys(speed.test for r in report.results for speed in r.speed))
    if not tests:
        return None
    rows = []
    for result in report.results:
        rates = {s.test: plus_minus(Estimate(s.mean, s.sd), 2) for s in result.speed}
        if rates:
            file = result.file
            cells = (rates.get(test, "") for test in tests)
            rows.append((file.name, size(file.bytes), f"{file.bits_per_weight:.2f}", *cells))
    return Table(("model", "size", "bpw", *(f"{test} t/s" for test in tests)), tuple(rows))


def files(report: Report) -> Table:
    """The files that the report is about; the base is not one of them."""
    rows = tuple((r.file.name, size(r.file.bytes), r.file.sha256) for r in report.models)
    return Table(("model", "size", "sha256"), rows)


def type_counts(report: Report) -> Table:
    """How many weights of each file have each type."""
    used: dict[str, None] = {}
    shares: list[tuple[str, dict[str, int]]] = []
    for result in report.models:
        count: dict[str, int] = {}
        for row in result.file.tensors:
            count[row.type] = count.get(row.type, 0) + row.n_weights
            used[row.type] = None
        shares.append((result.file.name, count))
    rows = []
    for name, count in shares:
        total = sum(count.values())
        rows.append((name, *(f"{100 * count[t] / total:.1f} %" if t in count else "" for t in used)))
    return Table(("model", *used), tuple(rows))


def verdicts(report: Report) -> Sequence[str]:
    """What the paired tests say about neighbours in the ranking."""
    tests = {(c.a, c.b): c for c in report.comparisons if c.measure == "kld"}
    names = [r.file.name for r in report.models if r.divergence]
    n_chunks = max((run.text.n_chunks for run in report.runs if run.text), default=0)
    out = []
    for better, worse in itertools.pairwise(names):
        test = tests.get((better, worse)) or tests.get((worse, better))
        if test is None:
            continue
        if 2 / 2**n_chunks > SURE:
            out.append(
                f"{counted(n_chunks, 'chunk is', 'chunks are')} too few to tell {better} from {worse}; score 6 or more"
            )
        elif test.p_value < SURE:
            out.append(f"{better} is better than {worse} (KL divergence, p = {test.p_value:.2g})")
        else:
            out.append(f"{better} and {worse} cannot be told apart (KL divergence, p = {test.p_value:.2g})")
    return out
