"""An evaluation as tables in the terminal."""

from __future__ import annotations

import rich.table
from rich.console import Console

from measure.divergence import Divergence
from measure.record import Run
from measure.report import collect, tables
from measure.report.tables import plus_minus

# The columns of the report's table that fit a terminal; --details and the files have the others.
NARROW = ("model", "size", "bpw", "PPL", "KLD mean", "same top %")


def print_evaluation(run: Run, details: bool) -> None:
    """Perplexity and divergence, tasks, speed; best first where there is a base. details: every statistic."""
    console = Console()
    report = collect([run])
    for table in (tables.quality(report), tables.tasks(report), tables.speeds(report)):
        if table is not None:
            console.print(_narrow(table))
    for line in (*tables.verdicts(report), *run.notes):
        console.print(line, highlight=False)
    if details:
        for result in report.models:
            if result.divergence is not None:
                console.print(_details(result.file.name, result.divergence))


def _narrow(table: tables.Table) -> rich.table.Table:
    wide = "KLD mean" in table.head
    kept = [i for i, head in enumerate(table.head) if not wide or head in NARROW]
    out = rich.table.Table(box=None, pad_edge=False)
    for i in kept:
        out.add_column(table.head[i], justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        out.add_row(*(row[i] for i in kept))
    return out


def _details(name: str, d: Divergence) -> rich.table.Table:
    table = rich.table.Table(title=name, box=None)
    table.add_column("statistic")
    table.add_column("value", justify="right")
    rows = {
        "PPL(Q)": plus_minus(d.ppl, 6),
        "PPL(base)": plus_minus(d.ppl_base, 6),
        "Cor(ln PPL(Q), ln PPL(base))": "" if d.correlation is None else f"{100 * d.correlation:.2f} %",
        "ln(PPL(Q)/PPL(base))": plus_minus(d.ln_ratio, 6),
        "PPL(Q)/PPL(base)": plus_minus(d.ratio, 6),
        "PPL(Q) − PPL(base)": plus_minus(d.ppl_diff, 6),
        "KLD mean": plus_minus(d.kld, 6),
        "KLD maximum": f"{d.kld_max:.6f}",
        **{f"KLD {p:g} %": f"{value:.6f}" for p, value in d.kld_percentiles.items()},
        "KLD minimum": f"{d.kld_min:.6f}",
        "Δp mean": plus_minus(d.p_diff.scaled(100), 3) + " %",
        "Δp maximum": f"{100 * d.p_diff_max:.3f} %",
        **{f"Δp {p:g} %": f"{100 * value:.3f} %" for p, value in d.p_diff_percentiles.items()},
        "Δp minimum": f"{100 * d.p_diff_min:.3f} %",
        "Δp RMS": plus_minus(d.p_diff_rms.scaled(100), 3) + " %",
        "same top token": plus_minus(d.same_top.scaled(100), 3) + " %",
    }
    for statistic, value in rows.items():
        table.add_row(statistic, value)
    return table
