"""Which of two models is better, and by what chance it only looks so, for all pairs of an evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from quantmill.measure.divergence import paired_test
from quantmill.measure.record import Comparison
from quantmill.measure.tasks import TaskResult, mcnemar


def divergence_tests(
    names: Sequence[str], divergences: Sequence[np.ndarray], n_chunks: int
) -> Iterator[Comparison]:
    """names, divergences from the base of the models: f64 by token, or by chunk."""
    for a, b in itertools.combinations(range(len(divergences)), 2):
        test = paired_test(divergences[a], divergences[b], n_chunks)
        yield Comparison("kld", names[a], names[b], test.difference.value, test.p_value)


def task_tests(
    names: Sequence[str], tasks: Sequence[str], found: Sequence[Sequence[TaskResult]]
) -> Iterator[Comparison]:
    """names: of all models; tasks: of the files of tasks; found [model][task]."""
    for a, b in itertools.combinations(range(len(found)), 2):
        for task, one, other in zip(tasks, found[a], found[b], strict=True):
            test = mcnemar(one, other)
            difference = one.accuracy.value - other.accuracy.value
            yield Comparison(task, names[a], names[b], difference, test.p_value)
