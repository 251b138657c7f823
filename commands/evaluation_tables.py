"""An evaluation as tables in the terminal."""

from __future__ import annotations

from quantmill.commands.console import show, table_text
from quantmill.measure.divergence import Divergence
from quantmill.measure.record import Run
from quantmill.measure.report import collect, tables
from quantmill.measure.report.tables import number, plus_minus

# The columns of the report's table that fit a terminal; --details and the files have the others.
NARROW = ("model", "size", "bpw", "PPL", "KLD mean", "same top %")


def print_evaluation(run: Run, details: bool) -> None:
    """Perplexity and divergence, tasks, speed; best first where there is a base. details: every statistic."""
    report = collect([run])
    for table in (tables.quality(report), tables.tasks(report), tables.speeds(report)):
        if table is not None:
            show(_narrow(table) + "\n")
    for line in (*tables.verdicts(report), *run.notes):
        show(line)
    if details:
        for result in report.models:
            if result.divergence is not None:
                rows = _details(result.divergence).items()
                show(f"\n{result.file.name}\n{table_text(list(rows), right=(1,))}")


def _narrow(table: tables.Table) -> str:
    wide = "KLD mean" in table.head
    kept = [i for i, head in enumerate(table.head) if not wide or head in NARROW]
    rows = [[row[i] for i in kept] for row in (table.head, *table.rows)]
    return table_text(rows, right=range(1, len(kept)))


def _details(d: Divergence) -> dict[str, str]:
    return {
        "PPL(Q)": plus_minus(d.ppl, 6),
        "PPL(base)": plus_minus(d.ppl_base, 6),
        "Cor(ln PPL(Q), ln PPL(base))": ""
        if d.correlation is None
        else number(100 * d.correlation, 2) + " %",
        "ln(PPL(Q)/PPL(base))": plus_minus(d.ln_ratio, 6),
        "PPL(Q)/PPL(base)": plus_minus(d.ratio, 6),
        "PPL(Q) − PPL(base)": plus_minus(d.ppl_diff, 6),
        "KLD mean": plus_minus(d.kld, 6),
        "KLD maximum": number(d.kld_max, 6),
        **{f"KLD {p:g} %": number(value, 6) for p, value in d.kld_percentiles.items()},
        "KLD minimum": number(d.kld_min, 6),
        "Δp mean": plus_minus(d.p_diff.scaled(100), 3) + " %",
        "Δp maximum": number(100 * d.p_diff_max, 3) + " %",
        **{f"Δp {p:g} %": number(100 * value, 3) + " %" for p, value in d.p_diff_percentiles.items()},
        "Δp minimum": number(100 * d.p_diff_min, 3) + " %",
        "Δp RMS": plus_minus(d.p_diff_rms.scaled(100), 3) + " %",
        "same top token": plus_minus(d.same_top.scaled(100), 3) + " %",
    }
