"""run(conversion): a Hugging Face model as a GGUF whose weights are not quantized, or only to Q8_0."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from quantmill.gguf_io.convert import Checkpoint, open_checkpoint
from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from quantmill.jobs import quantize
from quantmill.jobs.errors import JobError
from quantmill.jobs.watcher import PlanWatcher
from quantmill.recipe import Plan, Recipe
from quantmill.recipe.names import may_be_quantized
from quantmill.recipe.overrides import Override
from quantmill.recipe.patterns import parse_rule


@dataclass(frozen=True)
class Conversion:
    """`model`: a Hugging Face directory. `type`: f16, bf16, f32, q8_0, or auto for what the checkpoint is in.

    `threads`, `device`, `force`, `later`, `ray`, `source_on`, `output_on`: as in jobs.quantize.Job. `fp8_as_q8`: what
    was FP8 becomes Q8_0, the rest `type`.
    """

    model: Path
    output: Path
    type: str = "auto"
    device: str = "auto"
    threads: int | None = None
    force: bool = False
    fp8_as_q8: bool = False
    later: str = "with"
    ray: str | None = None
    source_on: Path | None = None
    output_on: Path | None = None


@dataclass(frozen=True)
class Result:
    """`type`: what "auto" became, in upper case; `written`: the run in jobs.quantize's words."""

    type: str
    written: quantize.Result


def plan_conversion(conversion: Conversion) -> Plan:
    """What `run` would write, and in `problems` all that would stop it. Raises as `run` does."""
    return quantize.plan_job(_job(conversion)[0])


def run(conversion: Conversion, watcher: PlanWatcher | None = None) -> Result:
    """Convert. Raises JobError when the model is no directory, and as jobs.quantize.run does."""
    job, type = _job(conversion)
    return Result(type, quantize.run(job, watcher))


def _job(conversion: Conversion) -> tuple[quantize.Job, str]:
    if not conversion.model.is_dir():
        raise JobError(f"{conversion.model}: is no directory; convert takes a Hugging Face model")
    checkpoint = open_checkpoint(conversion.model, conversion.type, conversion.later)
    job = quantize.Job(
        str(conversion.model),
        conversion.output,
        conversion_recipe(checkpoint, conversion.fp8_as_q8),
        device=conversion.device,
        threads=conversion.threads,
        force=conversion.force,
        way_out="convert to another type (--type bf16 or --type f32)",
        later=conversion.later,
        ray=conversion.ray,
        source_on=conversion.source_on,
        output_on=conversion.output_on,
    )
    return job, checkpoint.outtype


def conversion_recipe(checkpoint: Checkpoint, fp8_as_q8: bool = False) -> Recipe:
    """The recipe of a plain conversion: one type for the weights; MXFP4 and NVFP4 stay as they are, so does what must
    be F32 or keeps the checkpoint's type, and on demand what was FP8 becomes Q8_0."""
    wanted = dict.fromkeys(checkpoint.of_fp8(), "Q8_0") if fp8_as_q8 else {}
    wanted |= checkpoint.kept() | dict.fromkeys(checkpoint.in_f32(), "F32") | checkpoint.as_stored()
    arch = str(checkpoint.metadata.value("general.architecture"))
    free = {spec.name for spec in checkpoint.specs() if may_be_quantized(spec.name, spec.shape, arch)}
    wanted = {name: type for name, type in wanted.items() if name in free}
    if not wanted:
        return Recipe(checkpoint.outtype)
    # Rules count for quantized file types only, so that the file type is one and a last rule says what is meant.
    file_type = checkpoint.metadata.number("general.file_type")
    names = [f"^{re.escape(name)}$={type}" for name, type in wanted.items()]
    if free - wanted.keys():
        names.append(f".*={checkpoint.outtype}")
    return Recipe(
        "Q8_0",
        rules=tuple(parse_rule(rule) for rule in names),
        overrides=(
            Override("general.file_type", MetaValue(GGUFValueType.UINT32, file_type), str(file_type)),
        ),
    )
