"""What pruning changes of a model before anything else is done with it: experts cut, matrices refitted.

A job that has edits reads its model through them (`open_model`); layers are left out by the recipe, because an
importance matrix names tensors as they were. To run the pruned model, `edited.pruned_model` leaves them out as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantmill.gguf_io import TensorSource, open_source

if TYPE_CHECKING:
    from quantmill.gguf_io.edited import Stored


@dataclass(frozen=True, eq=False)
class Edits:
    """experts: layer → numbers of its experts that stay. replaced: tensor (as named in the source) → what stands for it
    now, of the experts that stay."""

    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    replaced: Mapping[str, Stored] = field(default_factory=dict)

    def gone(self, n_experts: int) -> dict[int, tuple[int, ...]]:
        """Layer → numbers of its experts that leave, of n_experts."""
        return {
            layer: tuple(expert for expert in range(n_experts) if expert not in kept)
            for layer, kept in self.experts.items()
        }

    @property
    def digest(self) -> str:
        """A hash of all they change."""
        import hashlib  # loads OpenSSL

        found = hashlib.sha256(repr(sorted(self.experts.items())).encode())
        for name, stored in sorted(self.replaced.items()):
            found.update(f"{name} {stored.type}".encode())
            found.update(stored.rows.tobytes())
        return found.hexdigest()


NO_EDITS = Edits()


def open_model(path: str, edits: Edits = NO_EDITS, later: str = "with") -> TensorSource:
    """The model of a job, edited. Raises as open_source does; RecipeError for experts that cannot be cut."""
    source = open_source(path, later)
    if edits is NO_EDITS:
        return source
    from quantmill.jobs.edited import edited  # most models are not pruned

    return edited(source, edits)
