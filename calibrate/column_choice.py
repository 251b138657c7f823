"""Who does a block of columns on a device: Triton's kernels, which are not believed unseen, or torch's operations.

The first block of each kind of levels is compared with torch's operations (column_check.py). Where it differs, or a
kernel does not run, that is said once, and torch's operations do the rest: the same work, only slower.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from quantmill.calibrate import columns
from quantmill.calibrate.column_check import wrong_descent, wrong_feeding
from quantmill.calibrate.columns import Descending, Feeding, Levels
from quantmill.qkernels.device_faults import FAULTS, reason_of
from quantmill.qkernels.engines import serving
from quantmill.qkernels.guard import first_answer
from quantmill.qkernels.torch_errors import SilentDeviceError, is_out_of_memory


class Columns(Protocol):
    """feed_columns and descend_columns, as in columns.py."""

    def feed_columns(self, work: Feeding, levels: Levels, begin: int, end: int) -> torch.Tensor: ...

    def descend_columns(self, work: Descending, levels: Levels, begin: int, end: int) -> torch.Tensor: ...


def columns_on(device: torch.device) -> Columns:
    """What does the blocks of columns of tensors on a device."""
    return _guarded(str(device)) if serving(device.type).name == "triton" else columns


@functools.cache
def _guarded(device: str) -> Columns:
    try:
        return Guarded(device, importlib.import_module("quantmill.calibrate.column_kernels"))
    except FAULTS as error:  # a Triton that is there, but broken
        _tell(device, reason_of(error))
        return columns


def _tell(device: str, reason: str) -> None:
    warnings.warn(
        f"compensation on {device}: its kernels for columns are not used ({reason}); torch operations do the same "
        "work, many times slower",
        RuntimeWarning,
        stacklevel=2,
    )


@dataclass(eq=False)
class Guarded:
    """Kernels that are compared once for each kind of levels. believed: kinds that were; refused: all, for good."""

    device: str
    kernels: Any
    believed: set[tuple[Any, ...]] = field(default_factory=set)
    refused: bool = False

    def feed_columns(self, work: Feeding, levels: Levels, begin: int, end: int) -> torch.Tensor:
        return self._done("feed_columns", wrong_feeding, work, levels, begin, end)

    def descend_columns(self, work: Descending, levels: Levels, begin: int, end: int) -> torch.Tensor:
        return self._done("descend_columns", wrong_descent, work, levels, begin, end)

    def _done(self, name: str, wrong: Any, work: Any, levels: Levels, begin: int, end: int) -> torch.Tensor:
        kind = (name, levels.legal, work.low is None)
        made: torch.Tensor
        if not self.refused:
            do: Callable[[], torch.Tensor] = functools.partial(
                getattr(self.kernels, name), work, levels, begin, end
            )
            before = [] if kind in self.believed else [part.clone() for part in work.changed(begin, end)]

            def first() -> tuple[torch.Tensor, tuple[int, int]]:
                made = do()
                return made, wrong(work, levels, begin, end, before, made)

            try:
                if kind in self.believed:
                    return do()
                made, (n, of) = first_answer(self.device, "which was to compensate a first block", first)
            except SilentDeviceError:
                raise
            except (*FAULTS, *self.kernels.FAULTS) as error:
                if is_out_of_memory(error):
                    raise
                self._refuse(reason_of(error))
            else:
                if not n:
                    self.believed.add(kind)
                    return made
                self._refuse(f"{n} of {of} weights of a first block are not what torch operations make of it")
            # what fails when it is started has changed nothing
            for part, old in zip(work.changed(begin, end), before, strict=False):
                part.copy_(old)
        made = getattr(columns, name)(work, levels, begin, end)
        return made

    def _refuse(self, reason: str) -> None:
        self.refused = True
        _tell(self.device, reason)
