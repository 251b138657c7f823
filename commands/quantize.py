"""quantmill quantize: llama-quantize's command line, by its own engine."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from quantmill.commands.console import bytes_bar, print_warnings, remark, show
from quantmill.commands.options import Device, DryRun, Json, Revision, Threads
from quantmill.commands.quantize_tables import (
    fallback_warning,
    plan_object,
    plan_text,
    result_object,
    result_text,
)

if TYPE_CHECKING:
    from quantmill.jobs.quantize import Job
    from quantmill.recipe import Plan, PlanEntry, TypeRule

_FILE_MARK = "file:\0"  # no argument of a process can hold a NUL


class _OrderedPatterns(TyperCommand):
    """Keeps `--tensor-type` and `--tensor-type-file` in the order given: the first pattern that matches wins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined = []
        rest = iter(args)
        for argument in rest:
            name, has_value, value = argument.partition("=")
            if name == "--tensor-type-file":
                joined += ["--tensor-type", _FILE_MARK + (value if has_value else next(rest, ""))]
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(
    cls=_OrderedPatterns, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
def quantize(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [OUTPUT] TYPE [THREADS]",
            help="A GGUF file (of a split model its first file), a Hugging Face directory or org/name on the hub; "
            "the file to write, by default ggml-model-TYPE.gguf beside a file, NAME-TYPE.gguf for a directory or "
            "org/NAME; a file type as `quantmill types` "
            "lists them, by name or number, or COPY.",
        ),
    ],
    imatrix: Annotated[
        str | None, typer.Option(metavar="FILE", help="Importance matrix, .gguf or .dat.")
    ] = None,
    include_weights: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Use importance only where the name contains TEXT."),
    ] = None,
    exclude_weights: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Use no importance where the name contains TEXT.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="Type of the tensors whose name matches a regular expression, e.g. attn_v=q8_0. The first match wins.",
        ),
    ] = None,
    tensor_type_file: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="More of these, separated by white space; # begins a comment."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="What each tensor becomes (see `quantmill recipe`), instead of TYPE: MODEL OUTPUT [THREADS]. "
            "--tensor-type and its like go first.",
        ),
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Of the token embeddings.")
    ] = None,
    output_tensor_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Of output.weight.")] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Copy output.weight.")
    ] = False,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mixture.")] = False,
    allow_requantize: Annotated[
        bool,
        typer.Option("--allow-requantize", help="Convert tensors that are quantized already. Costs quality."),
    ] = False,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Fail where a row length forces another type than wanted.")
    ] = False,
    prune_layers: Annotated[str | None, typer.Option(metavar="5,39", help="Leave these layers out.")] = None,
    override_kv: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=TYPE:VALUE", help="Set metadata; int, float, bool or str."),
    ] = None,
    keep_split: Annotated[bool, typer.Option("--keep-split", help="As many files as the model has.")] = False,
    split_max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Files of at most so many bytes of tensors, e.g. 500M, 2G, 4GiB."),
    ] = None,
    max_buffer_size: Annotated[
        int | None, typer.Option(metavar="MIB", min=1, help="Memory for rows under way. [default: 128]")
    ] = None,
    revision: Revision = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an output that is no GGUF model; never an input.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a smaller GGUF. Takes llama-quantize's own arguments and writes the same bytes.

    Better than there: the plan shows the exact size of the file, patterns that never decide anything are reported,
    missing importance is found before the work, pruning keeps the per-layer metadata in step, and an output never
    appears under its name before it is complete.
    """
    if include_weights and exclude_weights:
        raise typer.BadParameter("--include-weights and --exclude-weights cannot be used together")
    if keep_split and split_max_size:
        raise typer.BadParameter("--keep-split and --split-max-size cannot be used together")
    from quantmill.commands.hub import local_model
    from quantmill.jobs.quantize import DEFAULT_BUFFER_BYTES, Job, plan_job
    from quantmill.jobs.recipe import read_recipe
    from quantmill.recipe import Recipe, parse_layers, parse_override, parse_type

    rules = _rules(tensor_type or [])
    if recipe is None:
        source, output, file_type, n_threads = _positional(arguments, keep_split)
    else:
        source, output, n_threads = _without_type(arguments, "--recipe")
        file = read_recipe(recipe)
        file_type, rules = file.file_type, (*rules, *file.rules)
    wanted = Recipe(
        file_type,
        rules=rules,
        token_embedding_type=parse_type(token_embedding_type) if token_embedding_type else None,
        output_tensor_type=parse_type(output_tensor_type) if output_tensor_type else None,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        fallback=not no_fallback,
        allow_requantize=allow_requantize,
        prune_layers=parse_layers(prune_layers) if prune_layers else (),
        overrides=tuple(parse_override(text) for text in override_kv or ()),
        keep_split=keep_split,
        split_max_bytes=_size(split_max_size, "--split-max-size") if split_max_size else None,
    )
    job = Job(
        str(local_model(source, revision)),
        output,
        wanted,
        imatrix=imatrix,
        include_weights=tuple(include_weights or ()),
        exclude_weights=tuple(exclude_weights or ()),
        device=device,
        threads=(threads if threads is not None else n_threads) or None,
        max_buffer_bytes=max_buffer_size << 20 if max_buffer_size else DEFAULT_BUFFER_BYTES,
        force=force,
        inputs=(
            *(text.removeprefix(_FILE_MARK) for text in tensor_type or () if text.startswith(_FILE_MARK)),
            *([str(recipe)] if recipe else []),
        ),
    )
    if dry_run:
        _show_plan(plan_job(job), as_json)
    else:
        _run(job, as_json)


def _positional(arguments: list[str], keep_split: bool) -> tuple[str, Path, str, int | None]:
    """MODEL [OUTPUT] TYPE [THREADS] → model, output, file type, threads; told apart as llama-quantize does.

    It takes `7B.gguf` for type 7 where a type may stand; here a type is a whole word.
    """
    from quantmill.recipe import find_file_type, get_file_type

    if not 2 <= len(arguments) <= 4:
        raise typer.BadParameter("expected MODEL [OUTPUT] TYPE [THREADS]")
    source, rest = arguments[0], arguments[1:]
    output: Path | None = None
    if find_file_type(rest[0]) is None and len(rest) > 1:
        output, rest = Path(rest[0]), rest[1:]
    file_type = get_file_type(rest[0])
    if len(rest) > 2 or (len(rest) == 2 and not rest[1].isdecimal()):
        raise typer.BadParameter(f"expected a number of threads behind the type, not {' '.join(rest[1:])!r}")
    if output is None:
        output = default_output(source, file_type, "" if keep_split else ".gguf")
    return source, output, file_type, int(rest[1]) if len(rest) == 2 else None


def _without_type(arguments: list[str], option: str) -> tuple[str, Path, int | None]:
    """MODEL OUTPUT [THREADS], where `option` says what the tensors become → model, output, threads."""
    if len(arguments) not in (2, 3) or not all(word.isdecimal() for word in arguments[2:]):
        raise typer.BadParameter(f"with {option} TYPE is left out: expected MODEL OUTPUT [THREADS]")
    return arguments[0], Path(arguments[1]), int(arguments[2]) if len(arguments) == 3 else None


def _size(text: str, option: str) -> int:
    from quantmill.recipe import RecipeError, parse_size

    try:
        return parse_size(text, option)
    except RecipeError as error:
        raise typer.BadParameter(str(error)) from None


def default_output(source: str, file_type: str, suffix: str) -> Path:
    """llama-quantize's own name beside a GGUF file; of a directory or a model on the hub the model's name, so that two
    models of one place do not share it."""
    path = Path(source)
    if path.is_dir():
        return path.parent / f"{path.resolve().name}-{file_type}{suffix}"
    if path.exists():
        return path.parent / f"ggml-model-{file_type}{suffix}"
    # A model by name lies in the hub's cache, which is no place for results.
    return Path(f"{path.name}-{file_type}{suffix}")


def _rules(texts: list[str]) -> tuple[TypeRule, ...]:
    from quantmill.recipe import parse_rule, parse_rules

    rules: list[TypeRule] = []
    for text in texts:
        if text.startswith(_FILE_MARK):
            path = Path(text.removeprefix(_FILE_MARK))
            rules += parse_rules(path.read_text(encoding="utf-8", errors="surrogateescape"), str(path))
        else:
            rules.append(parse_rule(text))
    return tuple(rules)


def _show_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        show(json.dumps(plan_object(plan)))
        return
    show(plan_text(plan))
    print_warnings([*plan.problems, *fallback_warning(plan), *plan.warnings])


class _Shown:
    """Shows a run on stderr: what it does, warnings, the bar."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self._job = job
        self._stack = stack

    def note(self, line: str) -> None:
        remark(line)

    def planned(self, plan: Plan) -> None:
        remark(f"quantizing {self._job.source} to {self._job.output} as {self._job.recipe.file_type}")
        print_warnings([*fallback_warning(plan), *plan.warnings])
        total = sum(entry.source_bytes for entry in plan.entries)
        self._advance = self._stack.enter_context(bytes_bar(self._job.recipe.file_type, total))

    def advanced(self, entry: PlanEntry, n_bytes: int) -> None:
        self._advance(n_bytes, entry.name)


def _run(job: Job, as_json: bool) -> None:
    from quantmill.jobs.quantize import run

    with ExitStack() as stack:
        result = run(job, _Shown(job, stack))
    if as_json:
        show(json.dumps({**plan_object(result.plan), **result_object(result)}))
    else:
        show(result_text(result))
