"""What a pruning is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from quantmill.errors import choices
from quantmill.imatrix.text import Text
from quantmill.jobs.edits import Edits
from quantmill.jobs.errors import JobError
from quantmill.measure.divergence import Divergence
from quantmill.recipe.prune_experts import Share

CHUNKS = 32  # of 512 tokens; every fifth judges
MEASURED = 4  # of the others, that sets of layers and experts are compared on
BREADTH = 8  # layers that are candidates, those of the least block influence
CRITERIA = ("best", "REAP", "strength", "count", "AIMER")
MAX_DAMAGE = 0.5  # mean KL divergence above which nothing is made


@dataclass(frozen=True)
class Request:
    """model: a GGUF or a Hugging Face directory. layers: to be left out, as numbers; n_layers: so many, found by
    measuring. experts: how many leave every layer; criterion: by what, see jobs.prune_choice. n_chunks: of the texts,
    None: CHUNKS.

    breadth: how many layers are candidates. max_damage: mean KL divergence on held-back chunks above which the job is
    refused, None: never. heal: refit matrices where that helps. merge: experts that leave go into those they are like.
    """

    model: str
    calibration: tuple[Text, ...]
    layers: tuple[int, ...] = ()
    n_layers: int = 0
    experts: Share | None = None
    criterion: str = "best"
    n_chunks: int | None = None
    breadth: int = BREADTH
    max_damage: float | None = MAX_DAMAGE
    heal: bool = True
    merge: bool = False
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.calibration:
            raise JobError("pruning is measured on a text (--calibration FILE)")
        if self.max_damage is not None and not self.max_damage > 0:
            raise JobError(
                f"--max-damage {self.max_damage}: a mean KL divergence above 0, such as 0.5, or none"
            )
        if self.criterion not in CRITERIA:
            raise JobError(f"--expert-criterion {self.criterion}: {choices(self.criterion, CRITERIA)}")
        if self.merge and self.experts is None:
            raise JobError("--merge is about experts; add --prune-experts")
        if self.breadth < 1:
            raise JobError(f"--breadth {self.breadth}: must be at least 1")


@dataclass(frozen=True)
class Set:
    """Layers that are left out together. influence: 1 − cosine over them, of a set that is no run the sum of its runs'.

    kld, ppl: without them, measured; None where it was not. n_bytes: of their tensors in the model.
    """

    layers: tuple[int, ...]
    influence: float
    n_bytes: int
    kld: float | None = None
    ppl: float | None = None


@dataclass(frozen=True)
class ExpertRow:
    """An expert of a layer: REAP's saliency, tokens that were routed to it, AIMER (larger is less missed)."""

    layer: int
    expert: int
    saliency: float | None
    routed: int | None
    aimer: float


@dataclass(frozen=True)
class Scan:
    """sets: single layers in order, runs, and the sets that were measured, best first for each size. best: for each
    number of layers, the set that was measured to lose least. ppl: the model's own, on the same chunks."""

    n_layers: int
    sets: tuple[Set, ...]
    best: tuple[Set, ...]
    experts: tuple[ExpertRow, ...]
    ppl: float
    n_bytes: int
    n_chunks: int
    n_measured: int


@dataclass(frozen=True)
class Refitted:
    """A matrix that was refitted: how far hidden states behind it are from the original's, relative to them, before
    and after, on chunks held back."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Pruned:
    """layers: that are left out, in the model's numbers; experts: layer → those that leave. chosen_by: how.

    cut: the pruned model as it is cut, healed: after refitting (the same where nothing was, or it did not help); both
    against the original, on n_held chunks that were held back. edits: what the model is read through.
    influence: of every layer; measured: layer → divergence without it alone, on the chunks that candidates are compared
    on; shares: of the experts that leave, laid end to end, of what their layer's experts put out.
    """

    layers: tuple[int, ...]
    experts: Mapping[int, tuple[int, ...]]
    chosen_by: tuple[str, ...]
    cut: Divergence
    healed: Divergence
    refitted: tuple[Refitted, ...]
    merged: bool
    n_layers: int
    n_experts: int
    n_held: int
    chunks: np.ndarray
    edits: Edits
    influence: tuple[float, ...] = ()
    measured: Mapping[int, float] = field(default_factory=dict)
    shares: tuple[float, ...] = ()

    @property
    def kld(self) -> float:
        return self.healed.kld.value
