"""Which candidates may meet a wish, and which of them did it best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quantmill.jobs.comparisons import divergence_tests
from quantmill.jobs.errors import JobError
from quantmill.jobs.squeeze_request import Candidate, Measured, Wish
from quantmill.measure.divergence import paired_test
from quantmill.measure.record import Comparison
from quantmill.recipe.budget import Target
from quantmill.recipe.presets import FILE_TYPES

SURE = 0.05  # p-value below which one file counts as better than another
_PRESETS_TRIED = 2  # of those that fit a size: the largest


def candidates_of(wish: Wish, planned_bytes: Callable[[str], int | None]) -> tuple[Candidate, ...]:
    """A file type is its own candidate; a size has the types found for it and the largest presets that fit.

    planned_bytes: the size of the file of a preset, None where there is none. Raises JobError when no preset fits.
    """
    if wish.file_type is not None:
        return (Candidate(wish, wish.label, file_type=wish.file_type),)
    assert wish.ceiling is not None
    sizes = {name: size for name in FILE_TYPES if (size := planned_bytes(name)) is not None}
    fitting = sorted((name for name, size in sizes.items() if size <= wish.ceiling), key=sizes.__getitem__)
    if not fitting:
        least = min(sizes, key=sizes.__getitem__)
        raise JobError(
            f"{wish.label}: no file type makes this model so small; the least is {least} with {sizes[least]} bytes"
        )
    presets = [Candidate(wish, name, file_type=name) for name in fitting[-_PRESETS_TRIED:]]
    return (Candidate(wish, wish.label, target=Target(wish.ceiling, None)), *presets)


def best_of(measured: Sequence[Measured]) -> Measured:
    """The least divergence; among those that cannot be told from it, the smallest file."""
    best = min(measured, key=lambda one: one.kld)
    if 2 / 2 ** len(best.result.chunk_kld) > SURE:  # too few chunks for any difference to be sure
        return best
    equal = [one for one in measured if one is best or _p_value(one, best) >= SURE]
    return min(equal, key=lambda one: (one.n_bytes, one.kld))


def _p_value(a: Measured, b: Measured) -> float:
    return paired_test(
        np.array(a.result.chunk_kld), np.array(b.result.chunk_kld), len(a.result.chunk_kld)
    ).p_value


def compared(chosen: Sequence[Measured]) -> tuple[Comparison, ...]:
    """Paired tests of all pairs, by the names of their files."""
    divergences = [np.array(one.result.chunk_kld) for one in chosen]
    return tuple(divergence_tests([one.result.file.name for one in chosen], divergences, len(divergences[0])))
