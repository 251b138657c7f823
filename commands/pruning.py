"""Pruning on the command line: what the options ask for, how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quantmill.commands.console import UsageError, parsing, print_warnings, remark, show, table_text
from quantmill.commands.watching import Shown
from quantmill.errors import counted

if TYPE_CHECKING:
    from quantmill.jobs.prune_request import Pruned, Request
    from quantmill.jobs.quantize import Job
    from quantmill.measure.divergence import Divergence
    from quantmill.recipe.prune_experts import Share


@dataclass(frozen=True)
class Wanted:
    """layers: by number; n_layers: so many, found by measuring; experts: how many leave every layer.

    max_damage: as typed, None where nothing was; measured: whether there is a text to measure on."""

    layers: tuple[int, ...] = ()
    n_layers: int = 0
    experts: Share | None = None
    max_damage: str | None = None
    merge: bool = False
    heal: bool = True
    criterion: str | None = None
    texts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.layers or self.n_layers or self.experts)

    @property
    def measured(self) -> bool:
        return bool(self and self.texts)


def wanted_pruning(
    layers: str | None,
    experts: str | None,
    max_damage: str | None,
    merge: bool,
    no_heal: bool,
    criterion: str | None,
    texts: list[str],
    other_use: bool,
) -> Wanted:
    """texts: of --calibration; other_use: whether something else wants them too, so that layers given by number stay
    as they are unless a limit is named, or --no-heal. Raises UsageError."""
    from quantmill.recipe import parse_layers
    from quantmill.recipe.prune_experts import parse_share

    n_layers = 0
    with parsing():
        if layers and layers.startswith("auto:"):
            n_layers = _number(layers)
        numbers = parse_layers(layers) if layers and not n_layers else ()
        share = parse_share(experts) if experts else None
    if max_damage is not None:
        limit(max_damage)
    by_number = bool(numbers) and not share and other_use and max_damage is None and not no_heal
    used = () if by_number else tuple(texts)
    found = Wanted(numbers, n_layers, share, max_damage, merge, not no_heal, criterion, used)
    if n_layers and not texts:
        raise UsageError(f"--prune-layers {layers} needs a text to measure on: --calibration FILE")
    given = {
        "--max-damage": max_damage is not None,
        "--merge": merge,
        "--no-heal": no_heal,
        "--expert-criterion": criterion is not None,
    }
    for name, is_given in given.items():
        if is_given and not found.measured:
            raise UsageError(
                f"{name} belongs to pruning that is measured: --prune-layers or --prune-experts with --calibration"
            )
    return found


def _number(text: str) -> int:
    word = text.removeprefix("auto:")
    if not (word.isascii() and word.isdigit() and int(word)):
        raise UsageError(f"--prune-layers {text!r}: expected auto:N (N at least 1), or numbers: 5,39")
    return int(word)


def limit(text: str | None) -> float | None:
    """`none` → None; nothing → the default. Raises UsageError."""
    from quantmill.jobs.prune_request import MAX_DAMAGE

    if text is None:
        return MAX_DAMAGE
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UsageError(f"--max-damage {text}: expected a mean KL divergence such as 0.5, or none")
    return value


def require_unhealed(wanted: Wanted) -> None:
    """Beside what runs the model with all its layers. Raises UsageError where matrices would be refitted around a cut:
    they stand for the layers that are gone, and with them the model is neither the original nor the pruned one."""
    if wanted.measured and wanted.heal and (wanted.layers or wanted.n_layers):
        raise UsageError(
            "--compensate runs the model with all its layers, which matrices healed around a cut do not fit; prune "
            "into a file with COPY first, and quantize that one, or add --no-heal"
        )


def request_of(wanted: Wanted, model: str, device: str, threads: int | None) -> Request:
    from quantmill.imatrix.text import text_argument
    from quantmill.jobs.prune_request import Request

    with parsing():
        return Request(
            model,
            tuple(map(text_argument, wanted.texts)),
            layers=wanted.layers,
            n_layers=wanted.n_layers,
            experts=wanted.experts,
            criterion=wanted.criterion or "best",
            max_damage=limit(wanted.max_damage),
            heal=wanted.heal,
            merge=wanted.merge,
            device=device.split(",")[0],
            threads=threads,
        )


def prune_first(job: Job, wanted: Wanted, as_json: bool, writes: bool) -> tuple[Job, dict[str, Any]]:
    """The job on the pruned model, and what goes into the JSON object; what was lost is shown.

    writes: whether the job makes a file afterwards, so that its output is looked at before the work."""
    if wanted.measured:
        from quantmill.jobs.prune import apply, run
        from quantmill.jobs.quantize_plan import check_outputs

        if writes:  # what is measured for hours must have a place to go
            check_outputs(job)
        with Shown() as watcher:
            pruned = run(request_of(wanted, job.source, job.device, job.threads), watcher)
        if not as_json:
            show(f"{pruned_text(pruned)}\n")
        job = apply(job, pruned)
        _say_widened(job)
        return job, {"pruning": pruned_object(pruned)}
    if wanted.experts is None:
        return replace(job, recipe=replace(job.recipe, prune_layers=wanted.layers)), {}
    from quantmill.jobs.prune_weights import apply_without_text

    job = replace(job, recipe=replace(job.recipe, prune_layers=wanted.layers))
    remark("experts are chosen by their weights alone (AIMER); --calibration FILE measures what is lost")
    return apply_without_text(job, wanted.experts), {}


def _say_widened(job: Job) -> None:
    """COPY keeps types, but what was refitted of some cannot be packed again."""
    from quantmill.jobs.prune_rewrite import widened
    from quantmill.recipe import COPY

    found = widened(job.source, job.edits) if job.recipe.file_type == COPY else {}
    if found:
        types = ", ".join(dict.fromkeys(found.values()))
        print_warnings(
            [
                f"{len(found)} refitted matrices become F32, because {types} cannot be made without an importance "
                f"matrix: {', '.join(found)}; --no-heal leaves them as they are"
            ]
        )


def pruned_text(pruned: Pruned) -> str:
    """What leaves, and what it costs."""
    rows = []
    if pruned.layers:
        rows.append(("layers", f"{', '.join(map(str, pruned.layers))} of {pruned.n_layers}"))
    if pruned.experts:
        n = len(next(iter(pruned.experts.values())))
        rows.append(
            ("experts", f"{n} of {pruned.n_experts} in each of {counted(len(pruned.experts), 'layer')}")
        )
    if pruned.chosen_by:
        rows.append(("chosen", "; ".join(pruned.chosen_by)))
    rows.append(("damage as cut", _damage(pruned.cut)))
    if pruned.kld < pruned.cut.kld.value:
        how = [
            *(["merged"] if pruned.merged else []),
            f"{counted(len(pruned.refitted), 'matrix', 'matrices')} refitted",
        ]
        ratio = pruned.kld / pruned.cut.kld.value
        rows.append(("damage healed", f"{_damage(pruned.healed)}, × {ratio:.3f} ({', '.join(how)})"))
    rows.append(("judged on", f"{counted(pruned.n_held, 'chunk')} of the text that nothing was fitted to"))
    return table_text(rows)


def _damage(found: Divergence) -> str:
    return f"KLD {found.kld.value:.4f} ± {found.kld.error:.4f}, PPL {found.ppl_base.value:.3f} -> {found.ppl.value:.3f}"


def pruned_object(pruned: Pruned) -> dict[str, Any]:
    return {
        "layers": list(pruned.layers),
        "experts": {str(layer): list(gone) for layer, gone in pruned.experts.items()},
        "chosen_by": list(pruned.chosen_by),
        "kld": pruned.kld,
        "kld_error": pruned.healed.kld.error,
        "kld_unhealed": pruned.cut.kld.value,
        "ppl": pruned.healed.ppl.value,
        "ppl_unhealed": pruned.cut.ppl.value,
        "ppl_original": pruned.cut.ppl_base.value,
        "merged": pruned.merged,
        "refitted": [{"name": one.name, "before": one.before, "after": one.after} for one in pruned.refitted],
        "held_back_chunks": pruned.n_held,
    }
