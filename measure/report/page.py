"""The report as one HTML page that needs nothing else: styles, plots and numbers are inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import PurePath

from quantmill.errors import counted
from quantmill.gguf_io.kinds import containing
from quantmill.measure.report import pruned, tables
from quantmill.measure.report.collect import HeatMap, Report, without_paths
from quantmill.measure.report.setting import NO_SETTING, Setting, own, reasons, shown, sizes
from quantmill.measure.report.svg import Line, Point, scatter
from quantmill.measure.report.tables import Table, size

MARK = '<meta name="generator" content="quantmill report">'
PAGE = containing("a page of quantmill report", b"<!doctype html>", MARK.encode())


def page(report: Report, setting: Setting = NO_SETTING) -> str:
    """The whole document."""
    setting = shown(setting)
    style = resources.files("quantmill.measure.report").joinpath("style.css").read_text("utf-8")
    sections = [
        _summary(report),
        _plots(report, setting),
        _verdicts(report),
        _choice(own(report, setting), setting),
    ]
    sections += [_quality(report), _pruned(report), _tasks(report), _speeds(report)]
    sections += [_types(report), _origin(report)]
    title = escape(report.title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'{MARK}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: what quantization lost</title><style>{style}</style></head><body><main>"
        f"<h1>{title}: what quantization lost</h1>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _table(table: Table | None, wide_last: bool = False) -> str:
    if table is None:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    kind = "hashes" if wide_last else "numbers"
    rows = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _summary(report: Report) -> str:
    text = next((run.text for run in report.runs if run.text), None)
    lines = []
    if report.base is not None:
        file = report.base.file
        lines.append(
            f"Base: {file.name} ({file.architecture}, {file.n_weights:,} weights, {size(file.bytes)}, "
            f"{file.bits_per_weight:.2f} bits per weight)."
        )
    if text is not None:
        lines.append(
            f"Text: {PurePath(text.path).name}, {counted(text.n_chunks, 'chunk')} of {text.n_ctx} tokens; the second "
            f"half of each is scored, {text.n_scored:,} tokens in all."
        )
    return _paragraphs(lines)


def _verdicts(report: Report) -> str:
    lines = tables.verdicts(report)
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    title = f"Paired tests of neighbours: {len(lines)}"
    return f"<details class='verdicts'><summary>{title}</summary><ul>{items}</ul></details>"


def _plots(report: Report, setting: Setting) -> str:
    plots = []
    divergent = [r for r in report.models if r.divergence is not None]
    points = [
        Point(
            r.file.bytes / _unit(report)[1],
            r.divergence.kld.value,
            r.divergence.kld.error if math.isfinite(r.divergence.kld.error) else 0.0,
            report.labels[r.file.name],
            f"{r.file.name}: {size(r.file.bytes)}, KLD {tables.plus_minus(r.divergence.kld, 6)}",
        )
        for r in divergent
        if r.divergence is not None and math.isfinite(r.divergence.kld.value)
    ]
    size_title = f"size, {_unit(report)[0]}"
    if points:
        log = min(p.y for p in points) > 0
        plots.append(
            _figure(scatter(points, size_title, "mean KL divergence, nats", log), "KL divergence by size")
        )
    points = [
        Point(
            r.file.bytes / _unit(report)[1],
            r.ppl.value,
            0.0,
            report.labels[r.file.name],
            f"{r.file.name}: {size(r.file.bytes)}, PPL {tables.plus_minus(r.ppl, 4)}",
        )
        for r in report.models
        if r.ppl is not None and math.isfinite(r.ppl.value)
    ]
    if points:
        base = report.base.ppl if report.base else None
        line = Line(base.value, f"base {base.value:.3f}") if base and math.isfinite(base.value) else None
        plots.append(_figure(scatter(points, size_title, "perplexity", False, line), "Perplexity by size"))
    drawn, said = _predictions(report, setting)
    plots += drawn
    if not plots:
        return ""
    note = (
        "<p class='note'>Lower and further left is better; the line joins the files that no other beats in both. "
        f"Quants of one text share its noise, so errors of perplexity are not drawn: compare by divergence.{said}</p>"
    )
    return _section("Size and loss", f'<div class="plots">{"".join(plots)}</div>{note}')


def _choice(report: Report, setting: Setting) -> str:
    """Which file for which memory, sizes beside others', and why each was chosen."""
    beside = _section("Sizes in GB", _table(sizes(report, setting)))
    items = "".join(
        f"<li>{escape(name)}: {escape(why)}"
        + (
            f" (<a href='{escape(setting.link(recipe))}'>recipe</a>)"
            if (recipe := setting.recipes.get(name))
            else ""
        )
        + "</li>"
        for name, why in reasons(report, setting)
    )
    items += "".join(f"<li>not tried: {escape(line)}</li>" for line in setting.left_out)
    if not items:
        return beside
    which = _table(tables.choices(report))
    fit = _paragraphs([f"{setting.fit}."] if setting.fit else [])
    return beside + _section("Which one", f"{which}{fit}<ul class='runs'>{items}</ul>")


def _predictions(report: Report, setting: Setting) -> tuple[list[str], str]:
    """Predicted against measured loss, and what is to be said of it."""
    points = [
        Point(
            one.predicted,
            one.measured,
            0.0,
            report.labels.get(one.name, one.name),
            f"{one.name}: predicted {one.predicted:.5f}, measured {one.measured:.5f}",
        )
        for one in setting.predictions
        if math.isfinite(one.predicted) and math.isfinite(one.measured)
    ]
    if not points:
        return [], ""
    plot = scatter(points, "predicted loss, nats", "measured loss, nats", False, equal=True)
    said = (
        " Types that were found for a size: the loss predicted from single tensors against that of all together, on "
        "held-back chunks of the calibration text; on the line they are equal."
    )
    return [_figure(plot, "Predicted and measured loss")], said


def _figure(svg: str, caption: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _unit(report: Report) -> tuple[str, int]:
    largest = max(r.file.bytes for r in report.results)
    return ("GiB", 1 << 30) if largest >= 1 << 30 else ("MiB", 1 << 20)


def _quality(report: Report) -> str:
    note = (
        "<p class='note'>KLD: Kullback-Leibler divergence of the file's predictions from the base's, nats a token. "
        "Δp: change of the probability of the right token. Same top: share of positions where both rank the same "
        "token first. ± is one standard error.</p>"
    )
    body = _table(tables.quality(report))
    spread = _table(tables.percentiles(report))
    return _section("Perplexity and divergence", body and body + spread + note)


def _pruned(report: Report) -> str:
    layers, experts = pruned.by_layer(report), pruned.by_expert(report)
    return (
        _section("Left out", _table(pruned.pruned(report)))
        + _section("Damage by layer", _table(layers))
        + _section("Damage by expert", _table(experts))
    )


def _tasks(report: Report) -> str:
    return _section("Tasks", _table(tables.tasks(report)))


def _speeds(report: Report) -> str:
    return _section("Tokens per second", _table(tables.speeds(report)))


def _types(report: Report) -> str:
    maps = "".join(
        f"<details{' open' if i == 0 else ''}><summary>{escape(heat.title)}</summary>{_heat_map(heat)}</details>"
        for i, heat in enumerate(report.heat_maps)
    )
    return _section("Types and importance by layer", maps and _table(tables.type_counts(report)) + maps)


def _heat_map(heat: HeatMap) -> str:
    head = "".join(f"<th><span>{escape(kind)}</span></th>" for kind in heat.kinds)
    rows = []
    for layer, texts, levels, hints in zip(heat.layers, heat.text, heat.level, heat.hint, strict=True):
        cells = [
            f'<td class="h{round(10 * level)}" title="{escape(hint)}">{escape(text)}</td>'
            if text
            else "<td></td>"
            for text, level, hint in zip(texts, levels, hints, strict=True)
        ]
        rows.append(f"<tr><th>{escape(layer)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><th>layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _origin(report: Report) -> str:
    runs = "".join(
        f"<li><code>{escape(without_paths(run.command))}</code><br>{escape(run.date)}, "
        f"quantmill {escape(run.version)}, {escape(run.machine)}; {escape(run.device)}"
        + (f"<br>text sha256 <code>{run.text.sha256}</code>" if run.text else "")
        + (f"<br>base sha256 <code>{run.base.file.sha256}</code>" if run.base else "")
        + "".join(f"<br>{escape(note)}" for note in run.notes)
        + "</li>"
        for run in report.runs
    )
    return _section(
        "Commands and files", f"<ul class='runs'>{runs}</ul>{_table(tables.files(report), wide_last=True)}"
    )
