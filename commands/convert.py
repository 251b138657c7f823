"""quantmill convert: a Hugging Face model as a GGUF that is not quantized (or only to Q8_0)."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill.commands.console import CommandError, bytes_bar, print_warnings, remark, show, size_text
from quantmill.commands.options import Force
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.gguf_io.convert import Checkpoint
    from quantmill.recipe import Plan, PlanEntry, Recipe


def convert(
    model: Annotated[str, typer.Argument(help="A Hugging Face model directory, or org/name on the hub.")],
    output: Annotated[Path, typer.Argument(help="The GGUF to write.")],
    type: Annotated[
        str, typer.Option("--type", help="f16, bf16, f32, q8_0, or auto: what the checkpoint is in.")
    ] = "auto",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of org/name.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Default: all cores.")] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as one JSON object.")] = False,
) -> None:
    """Turn a Hugging Face model into a GGUF with the tensors and keys of llama.cpp's convert_hf_to_gguf.py.

    `quantmill quantize` takes the directory itself; this is for those who want the baseline file.
    """
    from quantmill.commands.hub import local_model
    from quantmill.gguf_io.convert import open_checkpoint
    from quantmill.jobs.quantize import Job, run

    directory = local_model(model, revision)
    if not directory.is_dir():
        raise CommandError(f"{model}: is no directory; convert takes a Hugging Face model")
    checkpoint = open_checkpoint(directory, type)
    recipe = conversion_recipe(checkpoint)
    with ExitStack() as stack:
        result = run(Job(str(directory), output, recipe, threads=threads, force=force), _Shown(stack))
    facts = {
        "output": str(output),
        "type": checkpoint.outtype,
        "tensors": len(result.plan.entries),
        "bytes": result.file_bytes,
        "seconds": round(result.seconds, 3),
    }
    if as_json:
        show(json_text(facts))
    else:
        size = size_text(result.file_bytes)
        show(
            f"{output}: {recipe.file_type}, {len(result.plan.entries)} tensors, {size}, {result.seconds:.1f} s"
        )


def conversion_recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a plain conversion: one type for the weights; blocks the checkpoint came with stay as they are."""
    from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
    from quantmill.qkernels.types import TYPES
    from quantmill.recipe import Recipe
    from quantmill.recipe.overrides import Override
    from quantmill.recipe.patterns import parse_rule

    kept = [spec for spec in checkpoint.specs() if TYPES[spec.type].family != "plain"]
    if not kept:
        return Recipe(checkpoint.outtype)
    # Rules count for quantized file types only, so that the file type is one and a last rule says what is meant.
    file_type = int(checkpoint.metadata.value("general.file_type"))
    names = [f"^{re.escape(spec.name)}$={spec.type}" for spec in kept]
    return Recipe(
        "Q8_0",
        rules=tuple(parse_rule(rule) for rule in (*names, f".*={checkpoint.outtype}")),
        overrides=(
            Override("general.file_type", MetaValue(GGUFValueType.UINT32, file_type), str(file_type)),
        ),
    )


class _Shown:
    """Shows a run on stderr: warnings, the bar."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def note(self, line: str) -> None:
        remark(line)

    def planned(self, plan: Plan) -> None:
        print_warnings(plan.warnings)
        total = sum(entry.source_bytes for entry in plan.entries)
        self._advance = self._stack.enter_context(bytes_bar("converting", total))

    def advanced(self, entry: PlanEntry, n_bytes: int) -> None:
        self._advance(n_bytes, entry.name)


app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command()(convert)
