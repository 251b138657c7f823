"""Whoever wants to know how a run goes."""

from __future__ import annotations

from typing import Literal, Protocol

from quantmill.recipe import Plan

Unit = Literal["bytes", "tokens", "chunks", "tasks", "models", "layers"]


class Watcher(Protocol):
    """Whoever wants to know how a run goes; called from its threads."""

    def note(self, line: str) -> None:
        """Something to be read now: where the weights are kept, how much was done before."""

    def warn(self, line: str) -> None:
        """Something that may be wrong, but does not stop the work; also that a file is replaced."""

    def began(self, what: str, total: int, unit: Unit) -> None:
        """A stage begins, and the one before it has ended; `total` units of work."""

    def progressed(self, amount: int, what: str = "") -> None:
        """`amount` more units of this stage are done; what: on what, or how it goes."""


class PlanWatcher(Watcher, Protocol):
    """Who watches a quantization also hears what is planned."""

    def planned(self, plan: Plan) -> None:
        """The plan is sound and work begins; its stage is the bytes of the source, tensor by tensor."""


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
