"""How long the stages of a squeeze take, about, and what of it fits the hours that are given.

The unit is a token through the model once. How fast that goes here is measured by the baseline; before there is one,
by a product of matrices. The factors are ratios of CPU time to it, measured on SmolLM2-135M and the small mixture of
experts of the examples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantmill.gguf_io import open_source
from quantmill.imatrix.text import N_CTX
from quantmill.jobs.compensate_request import CHUNKS
from quantmill.jobs.polish_checks import DEFAULT_CHUNKS
from quantmill.jobs.squeeze_request import Job, Wish
from quantmill.jobs.texts import SelfText

_BYTES_A_TOKEN = 4  # of text
_UNKNOWN_TOKENS = 300_000  # in a text that is not here yet
_SENSITIVITY_TOKENS = 8 * 256
_WALKED = 3.5  # compensation: passes of a token, second moments included
_SOLVED = 60.0  # and multiplications of its solver, a weight and column
_TRAINED = 3.0  # polish: forward, backward, and the original's share
_COMPENSATED_CHUNKS = CHUNKS["normal"]
_QUANTIZED = 20e6  # weights a second, of one thread
_TRIALS = 10
_CLOCK = 1e-4  # seconds, less than such a product takes anywhere: the clock may stand still meanwhile
_EFFICIENCY = 0.5  # of a model's products beside one large product


@dataclass(frozen=True)
class Costs:
    """n_weights of all matrices, active: that a token meets; solver: Σ weights × columns. rate: tokens a second."""

    n_weights: int
    active: int
    solver: int
    n_matrices: int
    rate: float

    def tokens(self, n: float) -> float:
        """Seconds to run n tokens once."""
        return n / self.rate

    def sensitivities(self) -> float:
        # Two types a tensor, the model run again from its layer on; then the tenth that costs most once more.
        return self.tokens(2.2 * self.n_matrices * 0.5 * _SENSITIVITY_TOKENS)

    def quantize(self) -> float:
        return self.n_weights / _QUANTIZED

    def compensate(self, n_chunks: int | None) -> float:
        n = (n_chunks or _COMPENSATED_CHUNKS) * N_CTX
        products = self.rate * self.active  # a second
        return self.tokens(_WALKED * n) + _SOLVED * self.solver / products

    def polish(self, n_chunks: int | None) -> float:
        return self.tokens(_TRAINED * (n_chunks or DEFAULT_CHUNKS) * N_CTX)


def costs_of(model: Path, rate: float | None) -> Costs:
    """rate: tokens a second where it was measured. Reads headers only."""
    source = open_source(model)
    try:
        arch = source.metadata.value("general.architecture")
        n_experts = source.metadata.number(f"{arch}.expert_count")
        used = source.metadata.number(f"{arch}.expert_used_count")
        matrices = [spec for spec in source.specs() if len(spec.shape) > 1]
    finally:
        source.close()
    total = active = solver = 0
    for spec in matrices:
        n = spec.n_cols * spec.n_rows
        total += n
        solver += n * spec.n_cols
        active += n * used // n_experts if len(spec.shape) > 2 and n_experts else n
    return Costs(total, active, solver, len(matrices), rate or _products_a_second() * _EFFICIENCY / active)


def _products_a_second() -> float:
    a = np.ones((512, 1024), np.float32)
    b = np.ones((1024, 1024), np.float32)
    a @ b  # threads start
    taken = []
    for _ in range(_TRIALS):  # the best, of this thread alone: others may use the machine for a moment
        started = time.thread_time()
        a @ b
        taken.append(time.thread_time() - started)
    return 512 * 1024 * 1024 / max(min(taken), _CLOCK)


def evaluation_tokens(job: Job) -> int:
    return _text_tokens([job.evaluation], job.chunks)


def calibration_tokens(job: Job) -> int:
    n = _text_tokens([t for t in job.calibration if not isinstance(t, SelfText)], job.imatrix_chunks)
    return n + sum(job.self_tokens for t in job.calibration if isinstance(t, SelfText))


def _text_tokens(texts: Sequence[object], n_chunks: int | None) -> int:
    found = sum(
        t.stat().st_size // _BYTES_A_TOKEN if isinstance(t, Path) and t.exists() else _UNKNOWN_TOKENS
        for t in texts
    )
    return found if n_chunks is None else min(found, n_chunks * N_CTX)


COMPENSATE, POLISH = "compensate", "polish"
_SAID = {COMPENSATE: "compensated codes", POLISH: "polish"}


@dataclass(frozen=True)
class Learning:
    """What is learned from the calibration, as (label of the wish, COMPENSATE or POLISH), and what is not, in words."""

    steps: frozenset[tuple[str, str]]
    left_out: tuple[str, ...]
    seconds: float


def learning_of(job: Job, wishes: Sequence[Wish], costs: Costs) -> Learning:
    """What was insisted on, and of what is free as much as fits the hours: codes of all wishes first, then polish."""
    steps, left_out = [], []
    total = 0.0
    asked = ((COMPENSATE, job.compensate), (POLISH, job.polish))
    estimates = {COMPENSATE: costs.compensate(job.learn_chunks), POLISH: costs.polish(job.learn_chunks)}
    for what, insisted in sorted(asked, key=lambda one: one[1] is None):
        seconds = estimates[what] + costs.tokens(evaluation_tokens(job))
        too_long = []
        for wish in wishes if insisted is not False else ():
            if insisted or total + seconds <= 3600 * job.hours:
                steps.append((wish.label, what))
                total += seconds
            else:
                too_long.append(wish.label)
        if too_long:
            each = "" if len(too_long) == 1 else " each"
            names = ", ".join(too_long)
            left_out.append(
                f"{_SAID[what]} of {names}: about {hours_text(seconds)}{each}, over --hours {job.hours:g}"
            )
    return Learning(frozenset(steps), tuple(left_out), total)


def hours_text(seconds: float) -> str:
    """`3 minutes`, `2.4 hours`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
