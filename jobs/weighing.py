"""The losses of candidate types: from weights, from single measurements, and in the company of chosen types."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from quantmill.calibrate.curves import loss_curve
from quantmill.calibrate.weights import Subject, quantized, sampled_errors
from quantmill.gguf_io import TensorSource
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.measurements import TOGETHER, Measurements, types_key
from quantmill.jobs.quantize import Job
from quantmill.qkernels.engines import choose_engines
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.types import TYPES
from quantmill.recipe.budget import Candidates, Problem, Solution, solve
from quantmill.recipe.names import category

if TYPE_CHECKING:
    from quantmill.calibrate.allocation import Sensitivity

ANCHOR_BITS = (3.4375, 5.5)  # the types nearest to these are measured
COSTLY = 0.1  # the share of tensors that is measured again in company
_TRUST = (0.25, 4.0)  # how far that may change a tensor's losses

Losses = dict[str, dict[str, float]]  # tensor in the output → type → loss
Bar = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]  # (what, how much) → advance


class Weighing:
    """One model's tensors and their candidates. Numbers that `kept` holds are not made again; new ones go there."""

    def __init__(
        self,
        problem: Problem,
        source: TensorSource,
        importance: ImportanceMatrix | None,
        job: Job,
        kept: Measurements,
        bar: Bar,
        sensitivity: Callable[[], Sensitivity],
    ) -> None:
        """sensitivity: gives the loaded model, always the same, when something has to be measured."""
        self._problem, self._source, self._kept, self._bar = problem, source, kept, bar
        self._importance, self._sensitivity = importance, sensitivity
        self._put: Solution | None = None  # whose types the loaded model has
        self._quantizer = row_quantizers(choose_engines(job.device)[0], job.threads)[0]
        self._specs = {spec.name: spec for spec in source.specs()}

    def estimated(self) -> Losses:
        """From the error of the weights, and what their kind of tensor loses for it."""
        errors = self._errors()
        return {
            c.entry.name: {
                type: self._problem.weight(c.entry.name) * error
                for type, error in errors[c.entry.name].items()
            }
            for c in self._problem.candidates
        }

    def measured(self) -> Losses:
        """Two types a tensor measured, the others along the tensor's own curve.

        Tensors that the model does not use, and others that cannot be measured, lose as their kind does.
        """
        self._measure()
        errors = self._errors()
        curves: Losses = {}
        ratios: dict[str, list[float]] = defaultdict(list)
        for c in self._problem.candidates:
            name = c.entry.name
            known = {type: loss for type, loss in self._losses_of(c).items() if errors[name][type] > 0}
            if known:
                curves[name] = loss_curve(errors[name], known)
                coarsest = max(known, key=lambda type: errors[name][type])
                wanted = errors[name][coarsest] * self._problem.weight(name)
                ratios[category(name)].append(max(known[coarsest], 0.0) / wanted)
        everywhere = [ratio for found in ratios.values() for ratio in found] or [1.0]
        for c in self._problem.candidates:
            if c.entry.name not in curves:
                ratio = statistics.median(ratios.get(category(c.entry.name), everywhere))
                curves[c.entry.name] = {
                    type: ratio * self._problem.weight(c.entry.name) * error
                    for type, error in errors[c.entry.name].items()
                }
        return curves

    def in_company(self, losses: Losses) -> tuple[Solution, Losses, float]:
        """Solve; measure again what loses most, among the types chosen; solve again. The better one, as measured."""
        first = solve(self._problem, losses)
        together = self._together(first)
        corrected = self._corrected(losses, first, together)
        second = solve(self._problem, corrected)
        again = self._together(second)
        if again <= together:
            return second, corrected, again
        return first, losses, together

    def _together(self, solution: Solution) -> float:
        """The divergence with all types of a solution."""
        company = self._company(solution)
        if TOGETHER not in company:
            company[TOGETHER] = self._with(solution).kld()
            self._kept.keep()
        return company[TOGETHER]

    def _corrected(self, losses: Losses, solution: Solution, together: float) -> Losses:
        """Losses after the costly tensors were measured in company: what the model gains when one is as it was."""
        predicted = {name: losses[name][type] for name, type in solution.types.items()}
        free = {
            c.entry.name: c.entry.source
            for c in self._problem.candidates
            if len(c.types) > 1 and c.entry.source not in self._kept.unused
        }
        costly = sorted(free, key=lambda name: -predicted[name])[: max(1, round(COSTLY * len(free)))]
        without = self._without(solution, [free[name] for name in costly])
        gained = {name: together - without[free[name]] for name in costly}
        rest = sum(loss for name, loss in predicted.items() if name not in gained)
        others = _trusted((together - sum(gained.values())) / rest) if rest > 0 else 1.0
        # A tensor that keeps its type loses nothing; what was measured of it is noise.
        gained = {name: gain for name, gain in gained.items() if predicted[name] > 0}
        return {
            name: {
                type: loss * (_trusted(gained[name] / predicted[name]) if name in gained else others)
                for type, loss in curve.items()
            }
            for name, curve in losses.items()
        }

    def _without(self, solution: Solution, sources: Sequence[str]) -> Mapping[str, float]:
        """The divergence with all types of a solution but one tensor's, which is as it was; for each of `sources`."""
        company = self._company(solution)
        wanted = {source: [self._specs[source].type] for source in sources if source not in company}
        if not wanted:
            return company
        sensitivity = self._with(solution)
        with self._bar("in company", sum(map(sensitivity.cost, wanted))) as advance:

            def found(source: str, type: str, loss: float) -> None:
                company[source] = loss
                self._kept.keep()

            sensitivity.measure(wanted, lambda source, type: self._source.read(source), found, advance)
        return company

    def _company(self, solution: Solution) -> dict[str, float]:
        types = {c.entry.source: solution.types[c.entry.name] for c in self._problem.candidates}
        return self._kept.company.setdefault(types_key(types), {})

    def _with(self, solution: Solution) -> Sensitivity:
        """The model with the types of a solution."""
        sensitivity = self._sensitivity()
        if self._put is not solution:
            for c in self._problem.candidates:
                type = solution.types[c.entry.name]
                sensitivity.put(c.entry.source, type, self._quantized(c.entry.source, type))
            self._put = solution
        return sensitivity

    def _errors(self) -> Losses:
        """Of every candidate type and every one that was measured, by the name in the output."""
        wanted = {
            c.entry.name: dict.fromkeys((*c.types, *self._losses_of(c))) for c in self._problem.candidates
        }
        missing = {
            c.entry.source: [type for type in wanted[c.entry.name] if type not in self._known(c)]
            for c in self._problem.candidates
        }
        missing = {source: types for source, types in missing.items() if types}
        with self._bar("errors", len(missing)) as advance:
            for source, types in missing.items():
                found = sampled_errors(self._source, self._subject(source), types, self._quantizer)
                self._kept.errors.setdefault(source, {}).update(found)
                advance(1, source)
        self._kept.keep()
        return {
            c.entry.name: {type: self._known(c)[type] for type in wanted[c.entry.name]}
            for c in self._problem.candidates
        }

    def _known(self, c: Candidates) -> Mapping[str, float]:
        return self._kept.errors.get(c.entry.source, {})

    def _measure(self) -> None:
        wanted = {}
        for c in self._problem.candidates:
            types = anchors(c, self._specs[c.entry.source].type)
            types = [type for type in types if type not in self._losses_of(c)]
            # Two types make a curve, also where another run with other limits chose them.
            if (
                types
                and len(self._losses_of(c)) < len(ANCHOR_BITS)
                and c.entry.source not in self._kept.unused
            ):
                wanted[c.entry.source] = types
        if not wanted:
            return
        sensitivity = self._sensitivity()
        used = sensitivity.in_order(wanted)
        with self._bar("sensitivity", sum(sensitivity.cost(n) * len(wanted[n]) for n in used)) as advance:

            def found(source: str, type: str, loss: float) -> None:
                self._kept.losses.setdefault(source, {})[type] = loss
                self._kept.keep()

            sensitivity.measure(wanted, self._quantized, found, advance)
        self._kept.unused += [source for source in wanted if source not in used]
        self._kept.keep()

    def _losses_of(self, c: Candidates) -> Mapping[str, float]:
        return self._kept.losses.get(c.entry.source, {})

    def _quantized(self, source: str, type: str) -> np.ndarray:
        return quantized(self._source, self._subject(source), type, self._quantizer)

    def _subject(self, source: str) -> Subject:
        spec = self._specs[source]
        n_matrices = Subject(spec, None).n_matrices
        if self._importance is None:
            return Subject(spec, None)
        return Subject(spec, self._importance.columns(source, spec.n_cols, n_matrices))


def anchors(c: Candidates, source_type: str) -> Sequence[str]:
    """The types to measure: of many candidates two, of one that one; never the type that the tensor has already."""
    others = [type for type in c.types if type != source_type]
    quantized_types = [type for type in others if TYPES[type].family != "plain"] or others
    found: list[str] = []
    for bits in ANCHOR_BITS:
        rest = [type for type in quantized_types if type not in found]
        if rest:
            found.append(min(rest, key=lambda type: abs(TYPES[type].bits_per_weight - bits)))
    return found


def _trusted(factor: float) -> float:
    return min(max(factor, _TRUST[0]), _TRUST[1])
