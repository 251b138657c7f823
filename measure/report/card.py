"""A Hugging Face model card: YAML header and the tables that quantizers publish. No path of this machine is in it."""

from __future__ import annotations

import json
import shlex
from pathlib import PurePath

from quantmill.errors import counted
from quantmill.gguf_io.kinds import containing
from quantmill.measure.errors import MeasureError
from quantmill.measure.record import PRUNED, ModelFile
from quantmill.measure.report import pruned, tables
from quantmill.measure.report.collect import Report, without_paths
from quantmill.measure.report.setting import NO_SETTING, Setting, own, reasons, shown, sizes
from quantmill.measure.report.tables import Table

HUB = "https://huggingface.co/"


# Whoever takes this line out keeps the card from being replaced.
MARK = (
    "<!-- written by quantmill report, which replaces this file; remove this line to keep what you change -->"
)
CARD = containing("a card of quantmill report", MARK.encode())


def card(
    report: Report,
    base_model: str | None = None,
    license_name: str | None = None,
    repository: str | None = None,
    setting: Setting = NO_SETTING,
) -> str:
    """README.md text. base_model: repository of the original model, license_name: as Hugging Face spells it; both by
    default what the model's metadata says. repository: where the files will lie, for the commands that fetch them."""
    setting = shown(setting)
    for value in (base_model, license_name, repository):
        if value is not None and (not value.strip() or "\n" in value):
            raise MeasureError(f"{value!r} cannot stand in a model card's header")
    ours = own(report, setting)
    facts = (report.base or report.models[0]).file.facts
    origin = facts.get("general.base_model.0.repo_url", "")
    base_model = base_model or (origin.removeprefix(HUB) if origin.startswith(HUB) else None)
    license_name = license_name or facts.get("general.license")
    parts: list[str | None] = [
        _header(base_model, license_name, setting),
        f"# {_escaped(report.title)}, quantized to GGUF\n",
    ]
    if base_model:
        parts.append(f"Quantized from [{base_model}]({HUB}{base_model}) with quantmill.\n")
    parts.append(_part("Sizes in GB", sizes(ours, setting), ours))
    which = _part("Which one", tables.choices(ours), ours, column=1)
    parts += [which, "A sixth of the memory is left for the context.\n"] if which else []
    parts += [f"{_escaped(setting.fit)}.\n"] if setting.fit else []
    parts.append(_running(ours, repository))
    parts += _quality(report, ours)
    parts.append(_part("Left out", pruned.pruned(ours), ours))
    parts.append(_part("Damage by layer", pruned.by_layer(ours), ours))
    parts.append(_part("Damage by expert", pruned.by_expert(ours), ours))
    parts.append(_part("Tasks", tables.tasks(report), ours))
    parts.append(_part("Tokens per second", tables.speeds(report), ours))
    parts.append(_part("Types, share of weights", tables.type_counts(ours), ours))
    parts.append(_recipe(ours, setting))
    parts.append(_part("Files", tables.files(ours), ours))
    parts += _provenance(ours)
    parts.append(_METRICS)
    return "\n".join(part for part in parts if part is not None) + "\n"


_METRICS = """
## What the numbers say

* PPL: perplexity of the text, how surprised the model is by each next token; 1 would be not at all. ρ: correlation of
  its logarithm with the original's, token by token.
* KLD: Kullback-Leibler divergence of the predictions from the original's, in nats a token; 0 is no loss.
* RMS Δp: root mean square of the change of the right token's probability.
* Tasks are scored as llama-perplexity does, by the likelihood of the answers. ± is one standard error.
"""


def _header(base_model: str | None, license_name: str | None, setting: Setting) -> str:
    # JSON strings are YAML strings, whatever characters they hold.
    lines = ["---"]
    lines += [f"base_model: {json.dumps(base_model)}", "base_model_relation: quantized"] if base_model else []
    for key, names in (("datasets", setting.datasets), ("language", setting.language)):
        lines += [f"{key}:", *(f"- {json.dumps(name)}" for name in names)] if names else []
    lines += [f"license: {json.dumps(license_name)}"] if license_name else []
    lines += [f"license_name: {json.dumps(setting.license_file_name)}"] if setting.license_file_name else []
    lines += [f"license_link: {json.dumps(setting.license_link)}"] if setting.license_link else []
    lines += ["library_name: gguf", f"pipeline_tag: {json.dumps(setting.pipeline_tag)}", "tags:"]
    lines += [f"- {tag}" for tag in ("gguf", "quantized", "llama.cpp", "quantmill")]
    return "\n".join([*lines, "---", MARK, ""])


def _running(report: Report, repository: str | None) -> str | None:
    if not report.models:
        return None
    choices = tables.choices(report).rows
    names = {result.file.name: result.file for result in report.models}
    chosen = names[choices[-1][1]] if choices else report.models[0].file
    name = shlex.quote(PurePath(chosen.path).name)
    fetch = f"hf download {repository} {name} --local-dir .\n" if repository else ""
    return (
        f"## How to download and run\n\n```sh\n{fetch}llama-cli -m {name}       # in the terminal\n"
        f"llama-server -m {name}    # in the browser\n```\n"
    )


def _quality(report: Report, ours: Report) -> list[str]:
    """ours: whose files have links."""
    text = next((run.text for run in report.runs if run.text), None)
    if text is None:
        return []
    against = report.base.file.name if report.base else "the saved base"
    parts = [
        f"## Quality\n\nAgainst {_escaped(against)} on {_code(PurePath(text.path).name)} "
        f"({counted(text.n_chunks, 'chunk')} of {text.n_ctx} tokens, {text.n_scored} scored).\n"
    ]
    parts += [
        _markdown(table, ours) for table in (tables.quality(report), tables.percentiles(report)) if table
    ]
    parts += [f"* {_escaped(line)}" for line in tables.verdicts(report)]
    return [*parts, ""]


def _recipe(report: Report, setting: Setting) -> str | None:
    """How each file came about: why it was chosen, its recipe, the importance."""
    chosen = reasons(report, setting)
    if not chosen and setting.importance is None:
        return None
    lines = []
    for name, why in chosen:
        recipe = setting.recipes.get(name)
        said = f", [recipe]({setting.link(recipe)}) for `quantmill quantize --recipe`" if recipe else ""
        lines.append(f"* {_escaped(name)}: {_escaped(why)}{said}")
    if setting.importance is not None:
        file, texts = setting.importance
        said = ", ".join(map(_code, texts))
        lines.append(
            f"* importance matrix of all files: [{_escaped(file)}]({setting.link(file)}), from {said}"
        )
    lines += [f"* not tried: {_escaped(line)}" for line in setting.left_out]
    return "\n".join(["## Recipe\n", *lines, ""])


def _provenance(report: Report) -> list[str]:
    """Commands, machines, texts and what the files say of their importance and of quantmill's work on them."""
    commands = "\n".join(without_paths(run.command) for run in report.runs)
    parts = [f"## How it was made and measured\n\n```sh\n{commands}\n```\n"]
    for run in report.runs:
        parts.append(f"* {run.date}, quantmill {run.version}, {_escaped(run.machine)}; {run.device}")
    for text in dict.fromkeys(run.text for run in report.runs if run.text):
        parts.append(f"* evaluation text {_code(PurePath(text.path).name)}, sha256 `{text.sha256}`")
    if report.base is not None:
        file = report.base.file
        parts.append(f"* base {_escaped(file.name)}, {tables.size(file.bytes)}, sha256 `{file.sha256}`")
    for result in report.models:
        parts += [f"* {_escaped(result.file.name)}: {line}" for line in _origins(result.file)]
    return parts


def _origins(file: ModelFile) -> list[str]:
    """Where the importance of a file came from, and every key that quantmill wrote about it."""
    facts = file.facts
    lines = []
    if "quantize.imatrix.file" in facts:
        chunks = facts.get("quantize.imatrix.chunks_count")
        data = facts.get("quantize.imatrix.dataset")
        lines.append(
            f"importance matrix {_code(facts['quantize.imatrix.file'])}"
            + (f" from {_code(data)}" if data else "")
            + (f", {chunks} chunks" if chunks else "")
        )
    own = {
        key: value
        for key, value in facts.items()
        if key.startswith("quantmill.") and not (key.startswith(PRUNED) and "," in value)  # lists have tables
    }
    lines += [f"`{key}` {_escaped(value)}" for key, value in sorted(own.items())]
    return lines


def _part(title: str, table: Table | None, report: Report, column: int = 0) -> str | None:
    return None if table is None or not table.rows else f"## {title}\n\n{_markdown(table, report, column)}"


def _markdown(table: Table, report: Report, column: int = 0) -> str:
    """A table; the names in `column` link to their files, which lie beside the card."""
    names = {r.file.name for r in report.models}

    def shown(i: int, cell: str) -> str:
        text = _escaped(cell)
        return f"[{text}]({report.links[cell]})" if i == column and cell in names else text

    rows = ["| " + " | ".join(shown(i, cell) for i, cell in enumerate(row)) + " |" for row in table.rows]
    head = "| " + " | ".join(map(_escaped, table.head)) + " |"
    rule = "| --- |" + " ---: |" * (len(table.head) - 1)
    return "\n".join([head, rule, *rows, ""])


def _code(text: str) -> str:
    """As code, whatever it holds: two signs open what has one of them inside."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _escaped(cell: str) -> str:
    for sign in "\\|`*_<[":
        cell = cell.replace(sign, "\\" + sign)
    return cell
