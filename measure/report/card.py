"""A Hugging Face model card: YAML header and the tables that quantizers publish."""

from __future__ import annotations

import json

from quantmill.measure.errors import MeasureError
from quantmill.measure.report import tables
from quantmill.measure.report.collect import Report
from quantmill.measure.report.tables import Table


def card(report: Report, base_model: str | None = None, license_name: str | None = None) -> str:
    """README.md text. base_model: repository of the original model. license_name: as Hugging Face spells it."""
    for value in (base_model, license_name):
        if value is not None and (not value.strip() or "\n" in value):
            raise MeasureError(f"{value!r} cannot stand in a model card's header")
    text = next((run.text for run in report.runs if run.text), None)
    parts: list[str | None] = [_header(base_model, license_name), f"# {report.title}, quantized to GGUF\n"]
    if base_model:
        parts.append(f"Quantized from [{base_model}](https://huggingface.co/{base_model}) with quantmill.\n")
    parts.append(_part("Files", tables.files(report)))
    if text is not None:
        parts.append(
            f"## Quality\n\nAgainst {report.base.file.name if report.base else 'the saved base'} on `{text.path}` "
            f"({text.n_chunks} chunks of {text.n_ctx} tokens, {text.n_scored} scored).\n"
        )
        parts += [_markdown(table) for table in (tables.quality(report), tables.percentiles(report)) if table]
        parts += [f"* {line}" for line in tables.verdicts(report)]
        parts.append("")
    parts.append(_part("Tasks", tables.tasks(report)))
    parts.append(_part("Tokens per second", tables.speeds(report)))
    parts.append(_part("Types, share of weights", tables.type_counts(report)))
    commands = "\n".join(run.command for run in report.runs)
    parts.append(f"## How it was measured\n\n```sh\n{commands}\n```\n")
    for run in report.runs:
        parts.append(f"* {run.date}, quantmill {run.version}, {run.machine}; {run.device}")
    return "\n".join(part for part in parts if part is not None) + "\n"


def _header(base_model: str | None, license_name: str | None) -> str:
    # JSON strings are YAML strings, whatever characters they hold.
    lines = ["---"]
    lines += [f"base_model: {json.dumps(base_model)}", "base_model_relation: quantized"] if base_model else []
    lines += [f"license: {json.dumps(license_name)}"] if license_name else []
    lines += ["library_name: gguf", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {tag}" for tag in ("gguf", "quantized", "llama.cpp", "quantmill")]
    return "\n".join([*lines, "---", ""])


def _part(title: str, table: Table | None) -> str | None:
    return None if table is None else f"## {title}\n\n{_markdown(table)}"


def _markdown(table: Table) -> str:
    rows = [table.head, *table.rows]
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
    rule = "| --- |" + " ---: |" * (len(table.head) - 1)
    return "\n".join([lines[0], rule, *lines[1:], ""])


def _escaped(cell: str) -> str:
    for sign in "\\|`*_<":
        cell = cell.replace(sign, "\\" + sign)
    return cell
