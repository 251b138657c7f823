"""`quantmill quantize` with several types: one reading of the model, a file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantmill.commands.console import show
from quantmill.commands.quantize_run import ShownPlans, enough_memory, remark_on
from quantmill.commands.quantize_tables import (
    plan_object,
    plan_text,
    result_object,
    result_text,
)
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.commands.quantize_arguments import Positional
    from quantmill.jobs.quantize import Job
    from quantmill.recipe import Plan


def quantize_several(
    first: Job, given: Positional, dry_run: bool, as_json: bool, extra: Mapping[str, Any]
) -> None:
    """The first job, and those like it of the other types and outputs. As JSON: a list, in the order of the types."""
    named = zip(given.file_types, given.outputs, strict=True)
    jobs = [
        replace(first, output=output, recipe=replace(first.recipe, file_type=type)) for type, output in named
    ]
    if dry_run:
        from quantmill.jobs.quantize_plan import plan_jobs

        _show_plans(jobs, plan_jobs(jobs), as_json, extra)
        return
    from quantmill.jobs.quantize import run_jobs

    with enough_memory(), (shown := ShownPlans(jobs)):
        results = run_jobs(jobs, shown)
    if as_json:
        show(json_text([{**plan_object(one.plan), **result_object(one), **extra} for one in results]))
    else:
        show("\n\n".join(map(result_text, results)))


def _show_plans(jobs: Sequence[Job], plans: Sequence[Plan], as_json: bool, extra: Mapping[str, Any]) -> None:
    if as_json:
        named = zip(jobs, plans, strict=True)
        show(json_text([{**plan_object(plan), "output": str(job.output), **extra} for job, plan in named]))
    else:
        shown = [f"{job.output}\n\n{plan_text(plan)}" for job, plan in zip(jobs, plans, strict=True)]
        show("\n\n".join(shown))
    remark_on(plans)
