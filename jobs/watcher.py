"""Whoever wants to know how a run goes."""

from __future__ import annotations

from typing import Protocol

from quantmill.recipe import Plan, PlanEntry


class Watcher(Protocol):
    """Whoever wants to know how a run goes; called from its threads."""

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

    def planned(self, plan: Plan) -> None:
        pass

    def advanced(self, entry: PlanEntry, n_bytes: int) -> None:
        pass
