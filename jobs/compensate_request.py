"""What a compensation is asked for, and who watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quantmill.imatrix.text import N_CTX, Cutting
from quantmill.jobs.errors import JobError
from quantmill.jobs.watcher import PlanWatcher, Silent

CHUNKS = {"fast": 32, "normal": 96, "thorough": 128}
EFFORT, DAMPING = "normal", 0.01  # where nothing else is asked for
FEWEST_CHUNKS = 4  # one is held back to judge by


@dataclass(frozen=True)
class Calibration:
    """texts: FILE or FILE=WEIGHT, as `imatrix collect` takes them; n_chunks: of 512 tokens, None: by effort.

    alpha: share of what earlier layers lost that a matrix makes good, None: chosen for each on held-back chunks.
    damping: added to second moments, times their mean. polish: scales and norms afterwards, on chunks of the texts that
    codes were not fitted to (thorough effort always does). resume: go on from the layers that an interrupted run left.
    keep_norms: nothing of the weights of norms goes into the matrices behind them, see calibrate/balance.py.
    """

    texts: tuple[str, ...]
    effort: str = EFFORT
    n_chunks: int | None = None
    alpha: float | None = None
    damping: float = DAMPING
    resume: bool = False
    polish: bool = False
    keep_norms: bool = False

    def __post_init__(self) -> None:
        if not self.texts:
            raise JobError("compensation needs a calibration text (--calibration FILE)")
        if self.effort not in CHUNKS:
            raise JobError(f"--effort {self.effort}: choose one of {', '.join(CHUNKS)}")
        if self.n_chunks is not None and self.n_chunks < FEWEST_CHUNKS:
            raise JobError(f"--chunks {self.n_chunks}: compensation needs at least {FEWEST_CHUNKS}")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise JobError(f"--alpha {self.alpha}: a share lies between 0 and 1")
        if self.alpha and self.effort == "fast":
            raise JobError(
                f"--alpha {self.alpha}: fast effort does not look at what earlier layers lost; leave --alpha out, or "
                "take --effort normal"
            )
        if not 1e-6 <= self.damping <= 10:
            raise JobError(f"--damping {self.damping}: between 0.000001 and 10 (0.01 is usual)")

    @property
    def polishes(self) -> bool:
        return self.polish or self.effort == "thorough"

    @property
    def cutting(self) -> Cutting:
        return Cutting(N_CTX, self.n_chunks or CHUNKS[self.effort], fewest=FEWEST_CHUNKS)


class CompensationWatcher(PlanWatcher, Protocol):
    def layer_done(self, done: int, n_layers: int) -> None:
        """One more layer is quantized."""


class SilentLayers(Silent):
    """A watcher that says nothing."""

    def layer_done(self, done: int, n_layers: int) -> None:
        pass
