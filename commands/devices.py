"""quantmill devices: what can quantize here, which engine serves it, whether it is right, and how fast."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill import __version__
from quantmill.commands.console import CommandError, UsageError, show, table_text
from quantmill.commands.options import Json
from quantmill.commands.watching import Shown
from quantmill.errors import choices
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantmill.jobs.check_devices import Checked, Limits
    from quantmill.qkernels.engines import Engine

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def devices(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare every type on every device with the CPU engine, and time it. Exit code 1 where one differs.",
        ),
    ] = False,
    bench: Annotated[
        bool, typer.Option("--bench", help="As --check, and what limits a file: disk, PCIe or the search.")
    ] = False,
    types: Annotated[
        str | None, typer.Option("--types", metavar="A,B", help="Check only these types. [default: all]")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the devices found here, the engine that serves each, and what --device auto takes."""
    from quantmill.qkernels.drivers import describe
    from quantmill.qkernels.engines import available_engines, choose_engines

    found = available_engines()
    if types and not (check or bench):
        raise UsageError("--types says which to check; add --check or --bench")
    if check or bench:
        _check(found, types, bench, as_json)
        return
    chosen = choose_engines("auto")
    rows = [{**asdict(engine), "what": describe(engine.device)} for engine in found]
    names = ", ".join(engine.device for engine in chosen)
    if as_json:
        why = {"device": names, "name": chosen[0].name, "why": chosen[0].why}
        show(json_text({"devices": rows, "auto": why}))
        return
    columns = {"DEVICE": "device", "WHAT": "what", "ENGINE": "name", "WHY": "why"}
    show(table_text([tuple(columns), *(tuple(row[key] for key in columns.values()) for row in rows)]))
    show(f"\n--device auto takes {names}: {chosen[0].why}")


def _check(engines: Sequence[Engine], types: str | None, bench: bool, as_json: bool) -> None:
    from quantmill.jobs.check_devices import check, described, limits, quantized_types

    wanted = _wanted(types, quantized_types()) if types else quantized_types()
    with Shown() as watcher:
        rows = check(engines, wanted, watcher=watcher)
    measured = {engine.device: limits(engine) for engine in engines} if bench else {}
    about = [f"quantmill {__version__}", *described(engines)]
    if as_json:
        show(json_text({"about": about, "types": [_fields(row, measured) for row in rows]}))
    else:
        show("To paste into a report:\n\n" + "\n".join(about) + "\n\n" + _table(rows, measured))
    wrong = [f"{row.type} on {row.device}" for row in rows if row.fault or row.identical is False]
    if wrong:
        raise CommandError(f"not the CPU's bytes, or none: {', '.join(wrong)}; the CPU does these")


def _wanted(types: str, known: Sequence[str]) -> list[str]:
    """F16 and its like are no types that a device searches for, so there is nothing to check."""
    names = [name.strip() for name in types.split(",")]
    for name in names:
        if name.upper() not in known:
            raise UsageError(f"--types {types}: unknown type {name!r}; {choices(name, known)}")
    return list(dict.fromkeys(name.upper() for name in names))


def _fields(row: Checked, measured: dict[str, Limits]) -> dict[str, object]:
    from quantmill.jobs.check_devices import slowest

    if row.device not in measured:
        return asdict(row)
    limit, mweights = slowest(row, measured[row.device])
    return {**asdict(row), **asdict(measured[row.device]), "limited_by": limit, "at_most_mweights": mweights}


def _table(rows: Sequence[Checked], measured: dict[str, Limits]) -> str:
    from quantmill.jobs.check_devices import slowest

    heads = ["DEVICE", "ENGINE", "TYPE", "BYTES", "Mweights/s", "GB/s", "SEARCH ALONE", "REGISTERS"]
    lines = [tuple([*heads, "LIMITED BY", "AT MOST"] if measured else heads)]
    for row in rows:
        cells = [row.device, row.engine, row.type, _bytes(row), f"{row.mweights:.1f}", f"{row.gigabytes:.2f}"]
        cells.append("-" if row.alone is None else f"{row.alone:.0f}")
        cells.append("-" if row.registers is None else str(row.registers))
        if measured:
            name, mweights = slowest(row, measured[row.device])
            cells += [name, f"{mweights:.0f} Mweights/s"]
        lines.append(tuple(cells))
    return table_text(lines)


def _bytes(row: Checked) -> str:
    """Whether a type's bytes are those of the CPU engine."""
    if row.fault:
        return row.fault
    if row.identical is None:
        return "the judge"
    return f"identical, {row.blocks} blocks" if row.identical else f"{row.different} of {row.blocks} differ"
