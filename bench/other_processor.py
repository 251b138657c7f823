"""The CPU engine as another processor would compile it: for tests and comparisons in a process of their own."""

from __future__ import annotations

from collections.abc import Mapping

import llvmlite.binding as llvm


def pretend(name: str, features: Mapping[str, bool]) -> None:
    """Let LLVM take this processor for one of that name and those extensions. Call before the engine is imported."""

    class Features(dict[str, bool]):
        def flatten(self) -> str:
            return ",".join(f"{'+' if there else '-'}{extension}" for extension, there in self.items())

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_host_cpu_name = lambda: name
    llvm.get_host_cpu_features = lambda: Features(features)
