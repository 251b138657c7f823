"""What is done about a device that fails, or gives wrong bytes; the work itself is in guarded.py."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantmill.qkernels.torch_errors import SilentDeviceError
from quantmill.qkernels.types import DeviceFault


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)


@dataclass(frozen=True)
class Guard:
    """How faults are dealt with: who is told, whether one is an error, how long a device may take.

    `first_seconds` for the first work on a type, searching or decoding, which compiles its kernels; `seconds` for each
    slab after it.
    """

    tell: Callable[[str], None] = _warn
    strict: bool = False
    first_seconds: float = 600
    seconds: float = 60


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


def first_answer(device: str, doing: str, work: Callable[[], Any]) -> Any:
    """What the first work of a kind gives or raises, on a device that nothing else in this process could take over: it
    holds a model. Raises SilentDeviceError for one that hangs, with what it was `doing`.
    """
    import torch

    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def under_the_same_modes() -> Any:  # which each thread has of its own
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return work()

    try:
        return within(Guard().first_seconds, under_the_same_modes)
    except DeviceFault as error:
        raise SilentDeviceError(f"{error} from {device}, {doing}") from error
