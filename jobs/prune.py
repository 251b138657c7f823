"""One pruning from request to edits: choose, cut, heal, and say what was lost before anything is written.

pruned = run(Request("model.gguf", (Text(Path("text.txt")),), n_layers=2), watcher)
job = apply(quantize_job, pruned)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantmill.jobs.edits import NO_EDITS, Edits
from quantmill.jobs.errors import JobError
from quantmill.jobs.prune_choice import ExpertChoice, expert_rows
from quantmill.jobs.prune_facts import facts_of
from quantmill.jobs.prune_layers import Search, require_fewer
from quantmill.jobs.prune_request import Pruned, Refitted, Request, Scan
from quantmill.jobs.prune_rewrite import healed, in_own_types, merged_experts
from quantmill.jobs.prune_session import Session, session
from quantmill.jobs.quantize import Job
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.measure.divergence import Divergence, summarize
from quantmill.recipe.presets import COPY
from quantmill.recipe.prune import plan_pruning


def scan(request: Request, watcher: Watcher | None = None) -> Scan:
    """Block influence of all layers, measured damage of the cheapest sets up to request.n_layers, saliency of experts.

    Raises as `run` does. What was measured is kept: a run that was stopped goes on where it was.
    """
    with session(request, watcher or Silent()) as opened:
        search = Search(opened)
        longest = min(max(1, request.n_layers), search.influence.n_layers - 1)
        best = search.best(longest) if longest else ()
        return Scan(
            search.influence.n_layers,
            search.all_sets(longest),
            best,
            expert_rows(opened),
            opened.own_ppl,
            sum(spec.n_bytes for spec in opened.source.specs()),
            len(opened.chunks.trained),
            len(opened.choosing),
        )


def run(request: Request, watcher: Watcher | None = None) -> Pruned:
    """Choose what leaves, measure, and heal. Nothing is written.

    Raises RecipeError for what leaves no model, JobError for damage above the limit, saying how much it is, and the
    packages' own errors for a model or a text that does not serve.
    """
    if not (request.layers or request.n_layers or request.experts):
        raise JobError("nothing is pruned: name layers, how many, or how many experts")
    watcher = watcher or Silent()
    with session(request, watcher) as opened:
        plan_pruning(request.layers, [spec.name for spec in opened.source.specs()])
        require_fewer(request.n_layers, opened.n_layers)
        edits, chosen_by = NO_EDITS, []
        n_experts = 0
        if request.experts is not None:
            choice = ExpertChoice(opened, request.experts)
            criterion, edits = choice.best()
            chosen_by.append(f"experts by {criterion}")
            n_experts = choice.experts.n
        layers, measured = request.layers, {}
        if request.n_layers:
            search = Search(opened, edits)
            layers = search.best(request.n_layers)[-1].layers
            measured = search.singles()
            chosen_by.append("layers by measured KL divergence")
        gone = edits.gone(n_experts)
        pruned = replace(
            _rewritten(opened, edits, layers),
            experts=gone,
            chosen_by=tuple(chosen_by),
            n_experts=n_experts,
            influence=tuple(map(opened.influence.of_run, range(opened.influence.n_layers))),
            measured=measured,
            shares=_shares(opened, gone),
        )
    _require_harmless(request, pruned)
    return pruned


def _shares(opened: Session, gone: Mapping[int, tuple[int, ...]]) -> tuple[float, ...]:
    """Of each expert that leaves, of what the experts of its layer put out; 0 in layers that no text passes."""
    influence, shares = opened.influence, []
    for layer, experts in gone.items():
        strength = (
            influence.saliency[layer] * influence.routed[layer] if layer in influence.saliency else None
        )
        for expert in experts:
            shares.append(0.0 if strength is None else float(strength[expert] / strength.sum()))
    return tuple(shares)


def _rewritten(opened: Session, edits: Edits, layers: tuple[int, ...]) -> Pruned:
    """The model as it is cut, then with experts merged and matrices refitted, each kept where it loses less."""
    request, watcher = opened.request, opened.watcher

    def judged(edits: Edits, what: str) -> Divergence:
        return summarize(opened.judged(opened.pruned(edits, layers), what))

    cut = best = judged(edits, "cut")
    merged = False
    if request.merge:
        tried = merged_experts(opened, edits)
        found = judged(tried, "merged")
        merged = found.kld.value < best.kld.value
        _tell(watcher, "merging", best, found, merged)
        if merged:
            edits, best = tried, found
    refitted: tuple[Refitted, ...] = ()
    if request.heal:
        tried, rows = healed(opened, edits, layers)
        found = judged(tried, "refitted") if rows else best
        better = found.kld.value < best.kld.value
        _tell(watcher, "refitting", best, found, better)
        if better:
            edits, best, refitted = tried, found, rows
    chunks = opened.chunks
    return Pruned(
        layers=layers,
        experts={},
        chosen_by=(),
        cut=cut,
        healed=best,
        refitted=refitted,
        merged=merged,
        n_layers=opened.n_layers,
        n_experts=0,
        n_held=len(chunks.held_back),
        chunks=chunks.all,
        edits=edits,
    )


def _tell(watcher: Watcher, what: str, before: Divergence, after: Divergence, kept: bool) -> None:
    how = "" if kept else "; not better, so it is left out"
    watcher.note(
        f"{what}: KL divergence {before.kld.value:.4f} -> {after.kld.value:.4f} on held-back chunks{how}"
    )


def _require_harmless(request: Request, pruned: Pruned) -> None:
    limit = request.max_damage
    if limit is not None and not pruned.kld <= limit:
        raise JobError(
            f"the pruned model is {pruned.kld:.3f} nats a token of KL divergence away from the original "
            f"(perplexity {pruned.healed.ppl_base.value:.2f} -> {pruned.healed.ppl.value:.2f}), more than the "
            f"{limit:g} allowed; prune less, or insist with --max-damage none"
        )


def apply(job: Job, pruned: Pruned) -> Job:
    """The quantization of the pruned model: its source is read through the edits, facts go into the metadata."""
    facts = (*job.recipe.overrides, *facts_of(pruned))
    recipe = replace(job.recipe, prune_layers=pruned.layers, overrides=facts)
    edits = in_own_types(job.source, pruned.edits) if recipe.file_type == COPY else pruned.edits
    return replace(job, recipe=recipe, edits=edits)
