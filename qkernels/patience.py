"""Work on a device that may never answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from quantmill.qkernels.types import DeviceFault


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` gives or raises. Raises DeviceFault when that takes too long; the thread is then left to itself."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except Exception as error:  # noqa: BLE001 - raised again, in the thread that waits
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise DeviceFault(f"no answer for {seconds:.0f} s")
    ((value, error),) = outcome
    if error is not None:
        raise error
    return value
