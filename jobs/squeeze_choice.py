"""Which candidates may meet a wish, and which of them did it best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quantmill.jobs.comparisons import divergence_tests
from quantmill.jobs.errors import JobError
from quantmill.jobs.squeeze_request import Candidate, Measured, Wish
from quantmill.measure.divergence import paired_test
from quantmill.measure.record import Comparison, ModelResult
from quantmill.recipe.budget import Target
from quantmill.recipe.presets import FILE_TYPES

SURE = 0.05  # p-value below which one file counts as better than another
SAME_SIZE = 1.005  # times the bytes of another: as large as that one
FASTER = 1.05  # times its tokens per second: faster than that one
_PRESETS_TRIED = 2  # of those that fit a size: the largest


def candidates_of(
    wish: Wish, planned_bytes: Callable[[str], int | None], reserved: int = 0
) -> tuple[Candidate, ...]:
    """A file type is its own candidate; a size has the types found for it and the largest presets that fit.

    planned_bytes: the size of the file of a preset, None where there is none. reserved: bytes of a size that stay free
    for keys of what is learned. Raises JobError when no preset fits.
    """
    if wish.file_type is not None:
        return (Candidate(wish, wish.label, file_type=wish.file_type),)
    assert wish.ceiling is not None
    sizes = {name: size for name in FILE_TYPES if (size := planned_bytes(name)) is not None}
    fitting = sorted((name for name, size in sizes.items() if size <= wish.ceiling), key=sizes.__getitem__)
    if not fitting:
        least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        raise JobError(
            f"{wish.label}: no file type makes this model so small; the least is {least} with {sizes[least]} bytes, "
            f"the most {most} with {sizes[most]}"
        )
    presets = [Candidate(wish, name, file_type=name) for name in fitting[-_PRESETS_TRIED:]]
    ceiling = wish.ceiling - reserved
    return (Candidate(wish, f"{wish.label}, found types", target=Target(ceiling, None)), *presets)


def best_of(
    measured: Sequence[Measured], speeds: Callable[[Sequence[Measured]], Sequence[float]] = lambda some: ()
) -> tuple[Measured, str]:
    """The least divergence, and why; among those that cannot be told from it the smallest, and of those of that size
    one that is faster by more than 5 %, else the least divergence. speeds: tokens per second of some, () if unknown."""
    best = min(measured, key=lambda one: one.kld)
    others = [one for one in measured if one is not best]
    if not others:
        return best, "the only candidate"
    if 2 / 2 ** len(best.result.chunk_kld) > SURE:
        return best, "the least divergence; of so few chunks no test can be sure"
    tests = {id(one): _p_value(one, best) for one in others}
    equal = [best, *(one for one in others if tests[id(one)] >= SURE)]
    if len(equal) == 1:
        nearest = min(others, key=lambda one: one.kld)
        return best, f"less divergence than {nearest.candidate.label} (p = {tests[id(nearest)]:.2g})"
    least_bytes = min(one.n_bytes for one in equal)
    as_small = [one for one in equal if one.n_bytes <= SAME_SIZE * least_bytes]
    chosen = min(as_small, key=lambda one: (one.kld, one.n_bytes))
    names = ", ".join(one.candidate.label for one in equal if one is not chosen)
    rates = speeds(as_small) if len(as_small) > 1 else ()
    if rates:
        fastest = max(range(len(rates)), key=rates.__getitem__)
        if rates[fastest] > FASTER * rates[as_small.index(chosen)]:
            said = f"the fastest of {len(as_small)} that cannot be told apart and are of one size"
            return as_small[fastest], said
    what = "the least of those of its size" if len(as_small) > 1 else "the smallest"
    return chosen, f"cannot be told from {names} and is {what}"


def _p_value(a: Measured, b: Measured) -> float:
    return paired_test(
        np.array(a.result.chunk_kld), np.array(b.result.chunk_kld), len(a.result.chunk_kld)
    ).p_value


def compared(results: Sequence[ModelResult]) -> tuple[Comparison, ...]:
    """Paired tests of all pairs, by the names of their files."""
    divergences = [np.array(one.chunk_kld) for one in results]
    return tuple(divergence_tests([one.file.name for one in results], divergences, len(divergences[0])))
