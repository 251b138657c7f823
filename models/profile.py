"""Where a model's time goes: seconds of every tensor operation while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quantmill.qkernels import products

# Of qkernels.products, which torch knows nothing of.
_OURS = ("entered", "multiplied", "multiplied_by_stored", "attended")
MATMULS = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "mv", "addmv", "_grouped_mm", *_OURS[:3]}
)


class Profile(TorchDispatchMode):
    """`with Profile() as profile:` times what this thread asks of torch and qkernels.products, by the operation's name.

    seconds: of the wall. A device is waited for after every operation, so that its time is counted where it is spent:
    there a profiled run is slower than one that is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._watching = ExitStack()

    def __enter__(self) -> Any:
        for name in _OURS:
            known = getattr(products, name)
            setattr(products, name, partial(self._timed, name, known))
            self._watching.callback(setattr, products, name, known)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._watching.close()

    def _timed(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        result = call(*args)
        self.seconds[name] += time.perf_counter() - start
        return result

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
