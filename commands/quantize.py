"""quantmill quantize: llama-quantize's command line, by its own engine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill.commands.console import UsageError, parsing, print_warnings
from quantmill.commands.options import (
    Device,
    DryRun,
    Force,
    Json,
    NextnOnly,
    NoNextn,
    Revision,
    Threads,
    later_layers,
)
from quantmill.commands.pruning import prune_first, require_unhealed, wanted_pruning
from quantmill.commands.quantize_arguments import (
    OrderedPatterns,
    check_calibration,
    check_together,
    files_of,
    refuse_several,
    refuse_without_compensate,
    rules_of,
    size_of,
    told_apart,
)
from quantmill.commands.quantize_run import Further, Make, quantize_and_show, reach_and_show, show_plan
from quantmill.commands.several import quantize_several

if TYPE_CHECKING:
    from quantmill.jobs.quantize import Job
    from quantmill.recipe import Plan

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=OrderedPatterns)
def quantize(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [OUTPUT] TYPE[,TYPE...] [THREADS]",
            help="A GGUF file (of a split model its first file), a Hugging Face directory or org/name on the hub; "
            "the file to write, by default ggml-model-TYPE.gguf beside a file, NAME-TYPE.gguf for a directory or "
            "org/NAME; a file type as `quantmill types` "
            "lists them, by name or number, or COPY. Several are made from one reading of the model; OUTPUT is then a "
            "folder, or a name with {type} in it.",
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
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Find the types that lose least in a file of at most SIZE (4.6GiB, 4600M), instead of TYPE: MODEL "
            "OUTPUT [THREADS].",
        ),
    ] = None,
    target_bpw: Annotated[
        float | None, typer.Option(metavar="BITS", help="The same for so many bits per weight.")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[=WEIGHT]",
            help="Text, plain or .jsonl conversations. With a target: measure the KL divergence of tensors on its "
            "second half; without, losses are guessed from the error of the weights. With --compensate: what codes are "
            "fitted to; repeatable.",
        ),
    ] = None,
    measure_chunks: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Chunks of 256 tokens to measure on. [default: 8]")
    ] = None,
    min_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="With a target: the smallest type to choose.")
    ] = None,
    max_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="With a target: the largest. [default: Q8_0]")
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
    prune_layers: Annotated[
        str | None,
        typer.Option(
            metavar="5,39|auto:N",
            help="Leave these layers out, or the N that are measured to lose least on the calibration text.",
        ),
    ] = None,
    prune_experts: Annotated[
        str | None,
        typer.Option(
            metavar="PART|N",
            help="Leave a part of the experts of every layer out (0.25), or N of them: by what they do on the "
            "calibration text, without one by their weights.",
        ),
    ] = None,
    max_damage: Annotated[
        str | None,
        typer.Option(
            metavar="KLD|none",
            help="Refuse to prune where the mean KL divergence on held-back chunks is larger. [default: 0.5]",
        ),
    ] = None,
    expert_criterion: Annotated[
        str | None,
        typer.Option(
            metavar="best|REAP|strength|count|AIMER",
            help="By what experts are chosen. [default: what is measured to lose least]",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Average experts that leave into those they are most like, where that helps."
        ),
    ] = False,
    no_heal: Annotated[
        bool,
        typer.Option(
            "--no-heal", help="Leave the matrices that stay as they are; by default some are refitted."
        ),
    ] = False,
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
    search: Annotated[
        str,
        typer.Option(
            metavar="default|thorough",
            help="How scales are searched: as llama.cpp does, with its bytes, or for the smallest squared error under "
            "the importance, in about five times the time. Same types, same size.",
        ),
    ] = "default",
    no_nextn: NoNextn = False,
    nextn_only: NextnOnly = False,
    revision: Revision = None,
    device: Device = "auto",
    strict_device: Annotated[
        bool,
        typer.Option(
            "--strict-device",
            help="Stop with an error where the device is not right or does not work, and the CPU would do its work.",
        ),
    ] = False,
    threads: Threads = None,
    compensate: Annotated[
        bool,
        typer.Option(
            "--compensate",
            help="Choose codes that undo each other's errors on the calibration text: minutes, not seconds.",
        ),
    ] = False,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="fast|normal|thorough", help="How long --compensate searches. [default: normal]"
        ),
    ] = None,
    chunks: Annotated[
        int | None, typer.Option(metavar="N", min=4, help="Chunks of 512 tokens that --compensate uses.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of earlier layers' losses made good. [default: chosen on held-back chunks]"),
    ] = None,
    damping: Annotated[
        float | None, typer.Option(help="Of second moments, times their mean. [default: 0.01]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted --compensate or --polish.")
    ] = False,
    polish: Annotated[
        bool,
        typer.Option(
            "--polish",
            help="Then train scales and norms on the calibration text against the model, as `quantmill polish` does; "
            "where that does not help, the plain file is kept.",
        ),
    ] = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a smaller GGUF. Takes llama-quantize's own arguments and writes the same bytes.

    Better than there: the plan shows the exact size of the file, patterns that never decide anything are reported,
    missing importance is found before the work, pruning keeps the per-layer metadata in step, and an output never
    appears under its name before it is complete.
    """
    check_together(
        ("--include-weights", include_weights, "--exclude-weights", exclude_weights),
        ("--keep-split", keep_split, "--split-max-size", split_max_size),
        ("--nextn-only", nextn_only, "--compensate", compensate),
        ("--nextn-only", nextn_only, "--polish", polish),
    )
    later = later_layers(no_nextn, nextn_only)
    from quantmill.commands.allocation import find_request, find_target
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.quantize import DEFAULT_BUFFER_BYTES, Job, plan_job
    from quantmill.jobs.recipe import other_importance, read_recipe
    from quantmill.recipe import Recipe, get_search, parse_override, parse_type

    size = size_of(target_size, "--target-size") if target_size else None
    target = find_target(size, target_bpw, adds_keys=polish or compensate)
    if target is None and (measure_chunks or min_type or max_type):
        raise UsageError("--measure-chunks, --min-type, --max-type belong to a target size")
    others = compensate or polish or target is not None
    pruning = wanted_pruning(
        prune_layers, prune_experts, max_damage, merge, no_heal, expert_criterion, calibration or [], others
    )
    check_calibration(calibration or [], compensate, target is not None, polish, bool(pruning))
    if compensate or target is not None:
        require_unhealed(pruning)
    if not compensate:
        refuse_without_compensate(effort, chunks, alpha, damping, resume and not polish)
    rules = rules_of(tensor_type or [])
    file = None if recipe is None else read_recipe(recipe)
    if file is not None:
        rules = (*rules, *file.rules)
        print_warnings(other_importance(file, str(recipe), imatrix))
    given = told_apart(arguments, keep_split, target is not None, file)
    refuse_several(given, compensate, polish)
    with parsing():
        wanted = Recipe(
            given.file_types[0],
            rules=rules,
            token_embedding_type=parse_type(token_embedding_type) if token_embedding_type else None,
            output_tensor_type=parse_type(output_tensor_type) if output_tensor_type else None,
            leave_output_tensor=leave_output_tensor,
            pure=pure,
            fallback=not no_fallback,
            allow_requantize=allow_requantize,
            overrides=tuple(parse_override(text) for text in override_kv or ()),
            keep_split=keep_split,
            split_max_bytes=size_of(split_max_size, "--split-max-size") if split_max_size else None,
            search=get_search(search),
        )
    job = Job(
        str(local_model(given.source, revision)),
        given.outputs[0],
        wanted,
        imatrix=imatrix,
        include_weights=tuple(include_weights or ()),
        exclude_weights=tuple(exclude_weights or ()),
        device=device,
        threads=(threads if threads is not None else given.n_threads) or None,
        max_buffer_bytes=max_buffer_size << 20 if max_buffer_size else DEFAULT_BUFFER_BYTES,
        force=force,
        later=later,
        strict_device=strict_device,
        inputs=(
            *files_of(tensor_type or ()),
            *([str(recipe)] if recipe else []),
            *_text_files(calibration or []),
        ),
    )
    job, lost = prune_first(job, pruning, as_json, writes=not dry_run)
    # a compensation polishes by itself, on chunks that its codes have not seen
    further = _polishing(job, calibration or [], resume) if polish and not compensate else None
    make: Make = quantize_and_show
    planned: Callable[[Job], Plan] = plan_job
    if compensate:
        from quantmill.commands.compensate import ways

        make, planned = ways(tuple(calibration or ()), effort, chunks, alpha, damping, resume, polish)
    make = functools.partial(make, as_json=as_json, further=further)
    if len(given.outputs) > 1:
        quantize_several(job, given, dry_run, as_json, lost)
    elif target is not None:
        request = find_request(job, target, calibration, measure_chunks, min_type, max_type)
        reach_and_show(request, dry_run, as_json, make, lost)
    elif dry_run:
        show_plan(planned(job), as_json, lost)
    else:
        make(job, extra=lost)


def _polishing(job: Job, texts: list[str], resume: bool) -> Further:
    """The step that trains the file that was just made."""
    from quantmill.commands.polish import polish_made

    return lambda paths: polish_made(paths, Path(job.source), texts, job.threads, job.device, resume)


def _text_files(texts: list[str]) -> list[str]:
    from quantmill.imatrix.text import text_argument

    with parsing():
        return [str(text_argument(text).path) for text in texts]
