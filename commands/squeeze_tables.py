"""What `quantmill squeeze` prints: the plan, the result, where a run stands; as tables and as JSON objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantmill.commands.console import size_text, table_text

if TYPE_CHECKING:
    from quantmill.jobs.squeeze_plan import Outlook
    from quantmill.jobs.squeeze_request import Result
    from quantmill.jobs.squeeze_status import Status


def plan_text(found: Outlook) -> str:
    from quantmill.jobs.squeeze_costs import hours_text

    rows = [("file", "candidate", "size", "GB")]
    for one in found.candidates:
        most = "at most " if one.candidate.is_found else ""
        gigabytes = f"{one.n_bytes / 1e9:.1f}" if one.n_bytes >= 10**9 else f"{one.n_bytes / 1e9:.4f}"
        rows.append((one.path.name, one.candidate.label, most + size_text(one.n_bytes), gigabytes))
    stages = [("stage", "about"), *((label, hours_text(seconds)) for label, seconds in found.stages)]
    total = hours_text(sum(seconds for _, seconds in found.stages))
    lines = [
        table_text(rows, right=(2, 3)),
        "",
        table_text(stages, right=(1,)),
        "",
        f"about {total} in all, and {size_text(found.disk)} on the disk at most at once",
    ]
    return "\n".join([*lines, *(f"left out: {line}" for line in found.left_out)])


def plan_object(found: Outlook) -> dict[str, Any]:
    return {
        "candidates": [
            {
                "file": one.path.name,
                "label": one.candidate.label,
                "bytes": one.n_bytes,
                "is_ceiling": one.candidate.is_found,
            }
            for one in found.candidates
        ],
        "stages": [{"label": label, "seconds": seconds} for label, seconds in found.stages],
        "disk_bytes": found.disk,
        "left_out": list(found.left_out),
        "problems": list(found.problems),
    }


def result_text(result: Result) -> str:
    rows = [("file", "size", "bpw", "KLD mean", "made as", "instead of")]
    for one in result.made:
        chosen = one.chosen
        others = ", ".join(f"{label} {kld:.6f}" for label, kld in one.instead_of.items())
        rows.append(
            (
                one.path.name,
                size_text(chosen.n_bytes),
                f"{chosen.result.file.bits_per_weight:.2f}",
                f"{chosen.kld:.6f}",
                chosen.candidate.label,
                others or "–",
            )
        )
    reasons = [f"{one.wish.label}: {one.reason}" for one in result.made]
    stages = f"{result.done} stages done, {result.found} found done, {result.seconds:.0f} s"
    lines = [table_text(rows, right=(1, 2, 3)), "", *reasons]
    lines += [f"left out: {line}" for line in result.left_out]
    return "\n".join([*lines, stages, *map(str, result.pages)])


def result_object(result: Result) -> dict[str, Any]:
    return {
        "files": [
            {
                "path": str(one.path),
                "bytes": one.chosen.n_bytes,
                "kld": one.chosen.kld,
                "made_as": one.chosen.candidate.label,
                "reason": one.reason,
                "instead_of": dict(one.instead_of),
                "tokens_per_second": {speed.test: speed.mean for speed in one.chosen.result.speed},
                "tasks": {task.kind: task.accuracy.value for task in one.chosen.result.tasks},
            }
            for one in result.made
        ],
        "pages": [str(path) for path in result.pages],
        "stages_done": result.done,
        "stages_found": result.found,
        "left_out": list(result.left_out),
        "seconds": result.seconds,
    }


def status_text(found: Status) -> str:
    rows = [("stage", "state", "seconds")]
    for row in found.stages:
        rows.append((row.label, row.state, "" if row.seconds is None else f"{row.seconds:.0f}"))
    line = found.state
    if found.progress is not None:
        what, done, total = found.progress
        line += f": {what}, {100 * done / max(total, 1):.0f} %"
    elif found.state == "stopped":
        line += "; the same command goes on"
    return "\n".join([table_text(rows, right=(2,)), "", line, found.command, *found.files])


def status_object(found: Status) -> dict[str, Any]:
    progress = None
    if found.progress is not None:
        progress = dict(zip(("what", "done", "total"), found.progress, strict=True))
    return {
        "state": found.state,
        "command": found.command,
        "stages": [{"label": r.label, "state": r.state, "seconds": r.seconds} for r in found.stages],
        "progress": progress,
        "files": list(found.files),
    }
