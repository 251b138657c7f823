"""Running `quantmill quantize`, and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quantmill import __version__
from quantmill.commands.console import (
    CommandError,
    detail,
    print_problems,
    print_warnings,
    remark,
    show,
    size_text,
)
from quantmill.commands.quantize_tables import (
    fallback_warning,
    plan_object,
    plan_text,
    result_object,
    result_text,
)
from quantmill.commands.watching import Shown
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.commands.polish import Added
    from quantmill.jobs.allocate import Request
    from quantmill.jobs.quantize import Job
    from quantmill.recipe import Plan, PlanEntry

Make = Callable[..., None]
Further = Callable[[Sequence[Path]], "Added"]  # a step after the file is made, and what it adds to the result


def show_plan(plan: Plan, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """The plan; problems and exit code are those of the run."""
    show(json_text({**plan_object(plan), **(more or {})}) if as_json else plan_text(plan))
    remark_on([plan])


def remark_on(plans: Sequence[Plan]) -> None:
    """What is to be said beside plans; what several share once."""
    from quantmill.jobs.quantize_plan import kept_notes

    print_warnings(
        list(dict.fromkeys(line for plan in plans for line in (*fallback_warning(plan), *plan.warnings)))
    )
    for note in dict.fromkeys(note for plan in plans for note in kept_notes(plan)):
        remark(note)
    problems = list(dict.fromkeys(problem for plan in plans for problem in plan.problems))
    if problems:
        print_problems(problems)
        raise typer.Exit(1)


class ShownPlans(Shown):
    """Also says what it does, and with --verbose what each tensor becomes. jobs: in the order of their plans."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__()
        self._jobs = cycle(jobs)  # a device that fails has all of it planned again
        self._entries: dict[str, list[PlanEntry]] = {}  # that were not spoken of

    def planned(self, plan: Plan) -> None:
        job = next(self._jobs)
        remark(f"quantizing {job.source} to {job.output} as {job.recipe.file_type}")
        print_warnings([*fallback_warning(plan), *plan.warnings])
        for entry in plan.entries:
            self._entries.setdefault(entry.name, []).append(entry)

    def progressed(self, amount: int, what: str = "") -> None:
        super().progressed(amount, what)
        for entry in self._entries.pop(what, ()):
            detail(f"{entry.name}: {entry.source_type} -> {entry.type}, {size_text(entry.n_bytes)}")


@contextmanager
def enough_memory() -> Iterator[None]:
    """Says what helps where it is not enough."""
    try:
        yield
    except MemoryError:
        raise CommandError("not enough memory; a smaller --max-buffer-size helps") from None


def reach_and_show(
    request: Request, dry_run: bool, as_json: bool, make: Make, extra: Mapping[str, Any]
) -> None:
    """Find the types for a size, and make the file unless the plan is all that is wanted.

    make(job, extra=…): how; quantize_and_show or one like it. extra: goes into the JSON object as well.
    """
    from quantmill.commands.allocation import allocation_object, allocation_text, find
    from quantmill.jobs.quantize_plan import check_outputs
    from quantmill.jobs.recipe import check_recipe_output, write_recipe

    if not dry_run:  # what is measured for hours must have a place to go
        check_outputs(request.job, request.target.file_bytes)
        output = check_recipe_output(request)
        print_warnings(output.warnings)
    found = find(request)
    if dry_run:
        show_plan(found.plan, as_json, {**extra, **allocation_object(found)})
        if not as_json:
            show(allocation_text(found, None))
        return
    make(found.job, extra={**extra, **allocation_object(found)})
    write_recipe(output, request, found, __version__)
    if not as_json:
        show(allocation_text(found, output.path))


def quantize_and_show(
    job: Job, as_json: bool, extra: Mapping[str, Any] | None = None, further: Further | None = None
) -> None:
    """Do the job and show what came of it; `extra` goes into the JSON object."""
    from quantmill.jobs.quantize import run

    with enough_memory(), (shown := ShownPlans([job])):
        result = run(job, shown)
    added, below = further(result.paths) if further else ({}, "")
    if as_json:
        show(json_text({**plan_object(result.plan), **result_object(result), **(extra or {}), **added}))
    else:
        show(result_text(result) + (f"\n\n{below}" if below else ""))
