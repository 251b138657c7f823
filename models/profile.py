"""Where a model's time goes: seconds of every tensor operation while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "mv", "addmv", "_grouped_mm"})


class Profile(TorchDispatchMode):
    """`with Profile() as profile:` times what this thread asks of torch, by the name of the operation.

    seconds: of the wall. A device is waited for after every operation, so that its time is counted where it is spent:
    there a profiled run is slower than one that is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(result.device)
        name = getattr(func, "overloadpacket", func)
        self.seconds[getattr(name, "__name__", str(name))] += time.perf_counter() - start
        return result

    @property
    def matmuls(self) -> float:
        """Seconds that matrix multiplications took."""
        return sum(self.seconds.get(name, 0.0) for name in MATMULS)
