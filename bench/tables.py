"""Results as Markdown for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import Machine


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading and how a row's value is written."""

    heading: str
    field: str
    form: str = "{}"


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return form.format(value)


def markdown(columns: Sequence[Column], rows: Iterable[Any]) -> str:
    """A table of dataclass rows; None is shown as a dash."""
    lines = [
        "| " + " | ".join(c.heading for c in columns) + " |",
        "|" + "|".join("---" if c.form == "{}" else "--:" for c in columns) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(getattr(row, c.field), c.form) for c in columns) + " |")
    return "\n".join(lines)


def heading(title: str, machine: Machine) -> str:
    """Title and the circumstances of the measurement."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    devices = f"; {', '.join(machine.devices)}" if machine.devices else ""
    return (
        f"# {title}\n\n"
        f"{machine.date}, commit {machine.commit}, {machine.processor}, {machine.cores} cores{devices}, "
        f"{machine.system}, load {machine.load} before the start.\n{versions}.\n\n    {machine.command}\n"
    )


def as_json(machine: Machine, rows: Iterable[Any]) -> str:
    return json.dumps({"machine": asdict(machine), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"


def report(
    out: Path | None, title: str, machine: Machine, columns: Sequence[Column], rows: Sequence[Any]
) -> None:
    """Print one table under its circumstances, and save it as OUT.md and OUT.json where that is asked for."""
    keep(out, title, machine, columns, rows)
    print(_page(title, machine, columns, rows))


def keep(
    out: Path | None, title: str, machine: Machine, columns: Sequence[Column], rows: Sequence[Any]
) -> None:
    """Save one table under its circumstances as OUT.md and OUT.json, where that is asked for."""
    if out:
        save(out, _page(title, machine, columns, rows), as_json(machine, rows))


def _page(title: str, machine: Machine, columns: Sequence[Column], rows: Sequence[Any]) -> str:
    return f"{heading(title, machine)}\n{markdown(columns, rows)}"


def save(prefix: Path, text: str, data: str) -> None:
    """`prefix`.md and `prefix`.json. Raises OSError when the folder cannot be written."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".md").write_text(text + "\n", encoding="utf-8")
    prefix.with_name(prefix.name + ".json").write_text(data, encoding="utf-8")
