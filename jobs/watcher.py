"""Whoever wants to know how a run goes."""

from __future__ import annotations

from typing import Literal, Protocol

from quantmill.recipe import Plan, PlanEntry

Unit = Literal["bytes", "tokens", "chunks", "tasks", "models"]


class Watcher(Protocol):
    """Whoever wants to know how a run goes; called from its threads."""

    def note(self, line: str) -> None:
        """Something to be read now: a file that is replaced, where the weights are kept."""

    def warn(self, line: str) -> None:
        """Something that may be wrong, but does not stop the work."""

    def began(self, what: str, total: int, unit: Unit) -> None:
        """A stage begins, and the one before it has ended; `total` units of work."""

    def progressed(self, amount: int, what: str = "") -> None:
        """`amount` more units of this stage are done; what: on what, or how it goes."""


class PlanWatcher(Protocol):
    """Who watches a quantization, slab by slab; called from its threads."""

    def note(self, line: str) -> None:
        """Something to be read before the work: a file that is replaced."""

    def planned(self, plan: Plan) -> None:
        """The plan is sound and work begins."""

    def advanced(self, entry: PlanEntry, n_bytes: int) -> None:
        """`n_bytes` more of the source are done, of this tensor."""


class Silent:
    """A watcher that says nothing."""

    def note(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        pass

    def began(self, what: str, total: int, unit: Unit) -> None:
        pass

    def progressed(self, amount: int, what: str = "") -> None:
        pass

    def planned(self, plan: Plan) -> None:
        pass

    def advanced(self, entry: PlanEntry, n_bytes: int) -> None:
        pass
