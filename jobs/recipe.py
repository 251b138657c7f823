"""Recipe files on disk, and the recipe of an allocation."""

from __future__ import annotations

from pathlib import Path

from quantmill.gguf_io.filesystem import beside, digest, read_whole
from quantmill.gguf_io.kinds import containing
from quantmill.gguf_io.outputs import Output, check_output
from quantmill.gguf_io.partial import write_whole
from quantmill.jobs.allocate import Allocated, Request
from quantmill.jobs.errors import JobError
from quantmill.recipe.lift import rules_for
from quantmill.recipe.names import may_be_quantized
from quantmill.recipe.recipe_file import RecipeFile, Value, parse_recipe, recipe_text

RECIPE = containing("a recipe", b"file_type", b"[types]")
_KLD = "KL divergence from the original over held-back chunks of the text, nats a token"
_ESTIMATE = "estimated from the error of the weights; to compare recipes of one model only"


def read_recipe(path: Path) -> RecipeFile:
    """The recipe in a file. Raises RecipeError or JobError for what it holds, OSError when unreadable."""
    raw = read_whole(path)
    try:
        return parse_recipe(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: is no recipe, byte {error.start} is not UTF-8 text") from None


def other_importance(recipe: RecipeFile, name: str, imatrix: str | None) -> list[str]:
    """A warning where a recipe is followed with other importance than it was made with: its bytes will differ."""
    wanted = recipe.made.get("imatrix_sha256")
    found = None if imatrix is None else digest([Path(imatrix)])
    if wanted == found or wanted is None:
        return []
    has = f"{imatrix} is another file" if imatrix else "none was given (--imatrix)"
    return [f"{name}: was made with the importance {recipe.made.get('imatrix', wanted)}; {has}"]


def recipe_path(output: Path) -> Path:
    """Where the recipe of a model is kept: small.gguf → small.recipe.toml."""
    return beside(output.with_name(output.name.removesuffix(".gguf") or "model"), ".recipe.toml")


def check_recipe_output(request: Request) -> Output:
    """Whether the recipe can be written beside the model. Raises GGUFError."""
    job = request.job
    others = [str(file) for file in (job.imatrix, request.text) if file]
    return check_output(recipe_path(job.output), RECIPE, [job.source, *job.inputs, *others], force=job.force)


def write_recipe(output: Output, request: Request, found: Allocated, version: str) -> None:
    """The recipe of what was found, complete or not at all."""
    write_whole(output.final, allocated_text(request, found, version).encode(errors="replace"))


def allocated_text(request: Request, found: Allocated, version: str) -> str:
    """A recipe that stands alone: patterns for every tensor, the user's own included, each with what it costs."""
    arch = str(found.plan.metadata["general.architecture"].value)
    entries = [entry for entry in found.plan.entries if may_be_quantized(entry.name, entry.shape, arch)]
    rules = rules_for({entry.name: entry.type for entry in entries})
    remarks = []
    left = list(entries)
    for rule in rules:
        matched = [entry for entry in left if rule.matches(entry.name)]
        left = [entry for entry in left if not rule.matches(entry.name)]
        loss = sum(found.losses.get(entry.name, 0.0) for entry in matched)
        megabytes = sum(entry.n_bytes for entry in matched) / 1e6
        remarks.append(f"{len(matched)} x, {megabytes:.1f} MB, loss {loss:.2g}")
    job = request.job
    made: dict[str, Value] = {"by": f"quantmill {version}", "model": Path(job.source).name}
    made["model_sha256"] = found.digests["model"]
    if job.imatrix:
        made |= {
            "imatrix": job.imatrix_name or Path(job.imatrix).name,
            "imatrix_sha256": found.digests["imatrix"],
        }
    if request.text:
        made |= {"text": request.text.name, "text_sha256": found.digests["text"]}
    made |= {"file_bytes": found.plan.file_bytes, "bpw": round(found.plan.bpw, 4)}
    made["predicted_loss"] = float(f"{found.predicted:.6g}")
    if found.measured is not None:
        made["measured_loss"] = float(f"{found.measured:.6g}")
    made["loss"] = _ESTIMATE if found.measured is None else _KLD
    return recipe_text(RecipeFile(found.plan.recipe.file_type, rules, made), remarks)
