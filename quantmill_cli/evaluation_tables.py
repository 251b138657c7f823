"""An evaluation as tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

from measure.divergence import Divergence
from measure.perplexity import Estimate
from measure.record import ModelResult, Run

SURE = 0.05  # p-value below which one quant is called better than the next


def print_evaluation(run: Run, details: bool) -> None:
    """One row a model, best first where there is a base; with `details` every statistic too."""
    console = Console()
    console.print(_models(run))
    for line in verdicts(run):
        console.print(line, highlight=False)
    if details:
        for result in run.models:
            if result.divergence is not None:
                console.print(_details(result.file.name, result.divergence))
    for note in run.notes:
        console.print(note, highlight=False)


def in_order(run: Run) -> list[ModelResult]:
    """Models by the run's ranking, those without a place last."""
    place = {name: i for i, name in enumerate(run.ranking)}
    return sorted(run.models, key=lambda result: place.get(result.file.name, len(place)))


def verdicts(run: Run) -> list[str]:
    """For each neighbouring pair of the ranking, whether the difference can be told from chance."""
    tests = {(c.a, c.b): c for c in run.comparisons if c.measure == "kld"}
    n_chunks = run.text.n_chunks if run.text else 0
    out = []
    for better, worse in zip(run.ranking, run.ranking[1:], strict=False):
        test = tests.get((better, worse)) or tests.get((worse, better))
        if test is None:
            continue
        if 2 / 2**n_chunks > SURE:
            out.append(f"{n_chunks} chunks are too few to tell {better} from {worse}; score 6 or more")
        elif test.p_value < SURE:
            out.append(f"{better} is better than {worse} (KL divergence, p = {test.p_value:.2g})")
        else:
            out.append(f"{better} and {worse} cannot be told apart (KL divergence, p = {test.p_value:.2g})")
    return out


def size(n_bytes: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes / 1024:.1f} KiB"


def _models(run: Run) -> Table:
    results = ([run.base] if run.base else []) + in_order(run)
    tasks = list(dict.fromkeys(task.kind for result in results for task in result.tasks))
    metrics = list(dict.fromkeys(metric for result in results for metric in result.lm_eval or {}))
    tests = list(dict.fromkeys(speed.test for result in results for speed in result.speed))
    columns: dict[str, Callable[[ModelResult], str]] = {
        "size": lambda result: size(result.file.bytes),
        "bpw": lambda result: f"{result.file.bits_per_weight:.2f}",
    }
    if any(result.ppl for result in results):
        columns["PPL"] = lambda result: _plus_minus(result.ppl, 4)
    if any(result.divergence for result in results):
        columns["KLD"] = lambda result: _plus_minus(result.divergence.kld, 6) if result.divergence else ""
        columns["same top %"] = lambda result: (
            _percent(result.divergence.same_top) if result.divergence else ""
        )
    for task in tasks:
        columns[f"{task} %"] = partial(_accuracy, task)
    for metric in metrics:
        columns[metric] = partial(_metric, metric)
    for test in tests:
        columns[f"{test} t/s"] = partial(_rate, test)
    table = Table("model", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.file.name, *(cell(result) for cell in columns.values()))
    return table


def _accuracy(task: str, result: ModelResult) -> str:
    return next((_percent(one.accuracy) for one in result.tasks if one.kind == task), "")


def _rate(test: str, result: ModelResult) -> str:
    return next((f"{one.mean:.1f} ± {one.sd:.1f}" for one in result.speed if one.test == test), "")


def _metric(name: str, result: ModelResult) -> str:
    return f"{result.lm_eval[name]:.4f}" if result.lm_eval and name in result.lm_eval else ""


def _percent(estimate: Estimate) -> str:
    return _plus_minus(estimate.scaled(100), 2)


def _plus_minus(estimate: Estimate | None, digits: int) -> str:
    return "" if estimate is None else f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def _details(name: str, d: Divergence) -> Table:
    table = Table(title=name)
    table.add_column("statistic")
    table.add_column("value", justify="right")
    rows = {
        "PPL(Q)": _plus_minus(d.ppl, 6),
        "PPL(base)": _plus_minus(d.ppl_base, 6),
        "Cor(ln PPL(Q), ln PPL(base))": "" if d.correlation is None else f"{100 * d.correlation:.2f} %",
        "ln(PPL(Q)/PPL(base))": _plus_minus(d.ln_ratio, 6),
        "PPL(Q)/PPL(base)": _plus_minus(d.ratio, 6),
        "PPL(Q) − PPL(base)": _plus_minus(d.ppl_diff, 6),
        "KLD mean": _plus_minus(d.kld, 6),
        "KLD maximum": f"{d.kld_max:.6f}",
        **{f"KLD {p:g} %": f"{value:.6f}" for p, value in d.kld_percentiles.items()},
        "KLD minimum": f"{d.kld_min:.6f}",
        "Δp mean": _plus_minus(d.p_diff.scaled(100), 3) + " %",
        "Δp maximum": f"{100 * d.p_diff_max:.3f} %",
        **{f"Δp {p:g} %": f"{100 * value:.3f} %" for p, value in d.p_diff_percentiles.items()},
        "Δp minimum": f"{100 * d.p_diff_min:.3f} %",
        "Δp RMS": _plus_minus(d.p_diff_rms.scaled(100), 3) + " %",
        "same top token": _plus_minus(d.same_top.scaled(100), 3) + " %",
    }
    for statistic, value in rows.items():
        table.add_row(statistic, value)
    return table
