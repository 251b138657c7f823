"""quantmill quantize: llama-quantize's command line, by its own engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from quantmill.commands import quantize_options as options
from quantmill.commands.console import UsageError, parsing, print_warnings
from quantmill.commands.options import (
    Device,
    DryRun,
    Force,
    Json,
    NextnOnly,
    NoNextn,
    OutputOn,
    Ray,
    Revision,
    SourceOn,
    Threads,
    folder_of,
    later_layers,
    on_workers,
)
from quantmill.commands.pruning import prune_first, require_unhealed, wanted_pruning
from quantmill.commands.quantize_arguments import (
    OrderedPatterns,
    check_together,
    files_of,
    rules_of,
    size_of,
    told_apart,
)
from quantmill.commands.quantize_fitting import Fitting
from quantmill.commands.quantize_run import reach_and_show, show_plan
from quantmill.commands.several import quantize_several

if TYPE_CHECKING:
    from quantmill.commands.quantize_arguments import Positional
    from quantmill.jobs.allocate import Request
    from quantmill.jobs.quantize_request import Job
    from quantmill.jobs.recipe import RecipeFile
    from quantmill.recipe import TypeRule

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=OrderedPatterns)
def quantize(
    arguments: options.Arguments,
    imatrix: options.Imatrix = None,
    include_weights: options.IncludeWeights = None,
    exclude_weights: options.ExcludeWeights = None,
    tensor_type: options.TensorType = None,
    tensor_type_file: options.TensorTypeFile = None,
    recipe: options.RecipeFrom = None,
    target_size: options.TargetSize = None,
    target_bpw: options.TargetBpw = None,
    calibration: options.Calibration = None,
    measure_chunks: options.MeasureChunks = None,
    min_type: options.MinType = None,
    max_type: options.MaxType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    output_tensor_type: options.OutputTensorType = None,
    leave_output_tensor: options.LeaveOutputTensor = False,
    pure: options.Pure = False,
    allow_requantize: options.AllowRequantize = False,
    no_fallback: options.NoFallback = False,
    prune_layers: options.PruneLayers = None,
    prune_experts: options.PruneExperts = None,
    max_damage: options.MaxDamage = None,
    expert_criterion: options.ExpertCriterion = None,
    merge: options.Merge = False,
    no_heal: options.NoHeal = False,
    override_kv: options.OverrideKv = None,
    keep_split: options.KeepSplit = False,
    split_max_size: options.SplitMaxSize = None,
    max_buffer_size: options.MaxBufferSize = None,
    search: options.Search = "default",
    no_nextn: NoNextn = False,
    nextn_only: NextnOnly = False,
    revision: Revision = None,
    device: Device = "auto",
    strict_device: options.StrictDevice = False,
    threads: Threads = None,
    ray: Ray = None,
    source_on: SourceOn = None,
    output_on: OutputOn = None,
    compensate: options.Compensate = False,
    effort: options.Effort = None,
    chunks: options.FittedChunks = None,
    alpha: options.Alpha = None,
    damping: options.Damping = None,
    resume: options.GoOn = False,
    keep_norms: options.KeepNorms = False,
    polish: options.Polish = False,
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
        ("--ray", ray, "--polish", polish),
        ("--ray", ray, "--target-size", target_size),
        ("--ray", ray, "--target-bpw", target_bpw),
        ("--source-on", source_on, "--compensate", compensate),
        ("--output-on", output_on, "--compensate", compensate),
        ("--output-on", output_on, "--resume", resume),
        ("--output-on", output_on, "--keep-split", keep_split),
        ("--output-on", output_on, "--split-max-size", split_max_size),
    )
    later = later_layers(no_nextn, nextn_only)
    from quantmill.commands.allocation import find_request, find_target
    from quantmill.jobs.hub import local_model
    from quantmill.jobs.quantize_request import DEFAULT_BUFFER_BYTES, Job
    from quantmill.recipe import Recipe, get_search, parse_override, parse_type

    size = size_of(target_size, "--target-size") if target_size else None
    target = find_target(size, target_bpw, adds_keys=polish or compensate)
    if target is None and (measure_chunks or min_type or max_type):
        raise UsageError("--measure-chunks, --min-type, --max-type belong to a target size")
    if target is not None and recipe is not None:
        raise UsageError("--recipe says all types; leave out --target-size and --target-bpw")
    texts = calibration or []
    others = compensate or polish or target is not None
    pruning = wanted_pruning(
        prune_layers, prune_experts, max_damage, merge, no_heal, expert_criterion, texts, others
    )
    rows_resume = resume and ray is not None and not (compensate or polish)
    goes_on = resume and not rows_resume
    fitting = Fitting(tuple(texts), compensate, polish, effort, chunks, alpha, damping, goes_on, keep_norms)
    fitting.check(target is not None, bool(pruning))
    if compensate:
        require_unhealed(pruning)
    rules, file = _rules(tensor_type or [], recipe, imatrix)
    given = told_apart(arguments, keep_split, target is not None, file)
    fitting.refuse_several(given.file_types)
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
    source = local_model(given.source, revision)
    job = Job(
        str(source),
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
        ray=ray,
        resume=rows_resume,
        source_on=on_workers("--source-on", source_on, ray, folder_of(source)),
        output_on=on_workers("--output-on", output_on, ray, given.outputs[0].parent),
        inputs=(*files_of(tensor_type or ()), *([str(recipe)] if recipe else []), *fitting.files()),
    )
    job, lost = prune_first(job, pruning, as_json, writes=not dry_run)
    request = None
    if target is not None:
        request = find_request(job, target, calibration, measure_chunks, min_type, max_type)
    _carry_out(job, given, fitting, request, dry_run, as_json, lost)


def _rules(
    patterns: list[str], recipe: Path | None, imatrix: str | None
) -> tuple[tuple[TypeRule, ...], RecipeFile | None]:
    """Those of --tensor-type and its like, which go first, and those of a recipe; and the recipe."""
    rules = rules_of(patterns)
    if recipe is None:
        return rules, None
    from quantmill.jobs.recipe import other_importance, read_recipe

    file = read_recipe(recipe)
    print_warnings(other_importance(file, str(recipe), imatrix))
    return (*rules, *file.rules), file


def _carry_out(
    job: Job,
    given: Positional,
    fitting: Fitting,
    request: Request | None,
    dry_run: bool,
    as_json: bool,
    extra: dict[str, Any],
) -> None:
    """request: to find types for a size first. extra: goes into the JSON object."""
    make, planned = fitting.ways(job, as_json)
    if len(given.outputs) > 1:
        quantize_several(job, given, dry_run, as_json, extra)
    elif request is not None:
        reach_and_show(request, dry_run, as_json, make, extra)
    elif dry_run:
        show_plan(planned(job), as_json, extra)
    else:
        make(job, extra=extra)
