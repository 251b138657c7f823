"""What `quantmill quantize` prints: the plan, the result, and both as JSON objects."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from quantmill.commands.console import size_text, table_text
from quantmill.errors import folded

if TYPE_CHECKING:
    from quantmill.jobs.quantize import Result
    from quantmill.recipe import Plan


def plan_object(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object; `problems` stop a real run, `warnings` do not."""
    return {
        "tensors": [
            {
                "name": entry.name,
                "shape": list(entry.shape),
                "source_type": entry.source_type,
                "type": entry.type,
                "bytes": entry.n_bytes,
            }
            for entry in plan.entries
        ],
        "file_bytes": plan.file_bytes,
        "bpw": plan.bpw,
        "search": plan.recipe.search,
        "fallbacks": [
            {"name": entry.name, "wanted": entry.fallback_from, "type": entry.type}
            for entry in plan.fallbacks
        ],
        "problems": folded(plan.problems),
        "warnings": folded(plan.warnings),
    }


def plan_text(plan: Plan) -> str:
    """A line for each tensor, then the totals."""
    rows = [("tensor", "shape", "from", "to", "size")]
    for entry in plan.entries:
        to = entry.type if entry.fallback_from is None else f"{entry.type} (not {entry.fallback_from})"
        shape = " x ".join(map(str, entry.shape))
        rows.append((entry.name, shape, entry.source_type, to, size_text(entry.n_bytes)))
    return f"{table_text(rows, right=(4,))}\n\n{table_text(_summary(plan))}"


def _summary(plan: Plan) -> list[tuple[str, str]]:
    counts = Counter(entry.type for entry in plan.entries)
    search = [] if plan.recipe.search == "default" else [("search", plan.recipe.search)]
    return [
        ("types", ", ".join(f"{count} {type}" for type, count in counts.most_common())),
        *search,
        ("file", f"{plan.file_bytes} bytes ({size_text(plan.file_bytes)}), metadata and padding included"),
        ("bits per weight", f"{plan.source_bpw:.2f} -> {plan.bpw:.2f}"),
    ]


def fallback_warning(plan: Plan) -> list[str]:
    if not plan.fallbacks:
        return []
    first = plan.fallbacks[0]
    return [
        f"{len(plan.fallbacks)} of {len(plan.entries)} tensors have a row length that rules their type out: "
        f"{first.name} becomes {first.type}, not {first.fallback_from} (--no-fallback refuses this)"
    ]


def result_object(result: Result) -> dict[str, Any]:
    return {
        "files": [str(path) for path in result.paths],
        **({"hosts": list(result.hosts)} if result.hosts else {}),
        "source_bytes": result.source_bytes,
        "seconds": result.seconds,
        "files_of_this_time": result.n_jobs,
        "step_seconds": dict(result.step_seconds),
        "mweights_per_second": result.converted_weights / result.seconds / 1e6,
        "engines": [
            {"name": engine.name, "device": engine.device, "why": engine.why} for engine in result.engines
        ],
    }


def result_text(result: Result) -> str:
    """The closing table."""
    plan = result.plan
    slowest, busy = max(result.step_seconds.items(), key=lambda item: item[1])
    ratio = result.file_bytes / result.source_bytes
    files = (
        str(result.paths[0]) if len(result.paths) == 1 else f"{result.paths[0]} … {len(result.paths)} files"
    )
    if result.n_jobs == 1:
        time = f"{result.seconds:.2f} s, {result.converted_weights / result.seconds / 1e6:.1f} Mweights/s"
    else:
        time = f"{result.seconds:.2f} s for all {result.n_jobs} files together"
    rows = [
        ("written", files),
        ("size", f"{size_text(result.source_bytes)} -> {size_text(result.file_bytes)} ({100 * ratio:.1f} %)"),
        ("bits per weight", f"{plan.source_bpw:.2f} -> {plan.bpw:.2f}"),
        ("time", time),
        ("slowest step", f"{slowest}, busy for {busy:.2f} s"),
        ("engine", "; ".join(f"{engine.name} on {engine.device}: {engine.why}" for engine in result.engines)),
    ]
    return table_text(rows)
