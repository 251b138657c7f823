"""What a compensated run reports: errors by kind of tensor, what was left plain."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantmill.jobs.quantize import Result
from quantmill.qkernels.types import TYPES
from quantmill.recipe import Plan, PlanEntry

if TYPE_CHECKING:
    import torch

    from quantmill.calibrate.layer import Made
    from quantmill.models.model import LoadedModel


@dataclass(frozen=True)
class KindError:
    """Tensors of one kind (`attn_q`, `ffn_down`, …) and type: error of their outputs over that of plain codes.

    fitted: on the chunks that the codes were made for; held: on those held back. shares: mean of the target's a, b.
    """

    kind: str
    type: str
    n_tensors: int
    fitted: float
    held: float
    shares: tuple[float, float]


@dataclass(frozen=True)
class Compensated(Result):
    """errors: by kind of tensor; n_chunks, n_held: of the text, and of those the ones held back to judge.

    plainly: tensors that were quantized without compensation although they were to be converted.
    peak_bytes: of the process's memory; device_peak_bytes: of a GPU's, 0 without one.
    """

    errors: tuple[KindError, ...] = ()
    n_chunks: int = 0
    n_held: int = 0
    plainly: tuple[str, ...] = ()
    peak_bytes: int = 0
    device_peak_bytes: int = 0


def is_searched(entry: PlanEntry) -> bool:
    return entry.converted and TYPES[entry.type].family != "plain"


def compensated_entries(plan: Plan, loaded: LoadedModel) -> list[PlanEntry]:
    """Whose codes the walk chooses."""
    from quantmill.models.walk import walked_names
    from quantmill.models.walked_output import output_names

    walked = {*walked_names(loaded), *(output_names(loaded) or ())[:1]}
    return [entry for entry in plan.entries if is_searched(entry) and entry.source in walked]


def unwalked_entries(plan: Plan, loaded: LoadedModel) -> list[PlanEntry]:
    """Whose codes no walk chooses."""
    walked = {entry.name for entry in compensated_entries(plan, loaded)}
    return [entry for entry in plan.entries if is_searched(entry) and entry.name not in walked]


def plainly(plan: Plan, made: list[Made]) -> tuple[str, ...]:
    compensated = {one.name for one in made if one.compensated}
    return tuple(e.name for e in plan.entries if is_searched(e) and e.source not in compensated)


def by_kind(made: list[Made]) -> tuple[KindError, ...]:
    groups: dict[tuple[str, str], list[Made]] = {}
    for one in made:
        if one.compensated:
            kind = one.name.removesuffix(".weight").split(".", 2)[-1]
            groups.setdefault((kind, one.type), []).append(one)
    return tuple(
        KindError(
            kind,
            type,
            len(members),
            _mean_ratio([one.fitted for one in members]),
            _mean_ratio([one.held for one in members]),
            (
                sum(one.shares.input for one in members) / len(members),
                sum(one.shares.residual for one in members) / len(members),
            ),
        )
        for (kind, type), members in sorted(groups.items())
    )


def _mean_ratio(pairs: list[tuple[float, float]]) -> float:
    """Geometric mean of made over plain."""
    logs = [np.log(made / plain) for plain, made in pairs if plain > 0 and made > 0]
    return float(np.exp(np.mean(logs))) if logs else 0.0


def resident_bytes() -> int:
    """Of this process now; where the system does not say, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_peak_bytes(device: torch.device) -> int:
    """Of a GPU's memory, what this process has used at most so far; 0 for the CPU and where torch does not say."""
    import torch

    found: Any = getattr(getattr(torch, device.type), "max_memory_allocated", None)
    return 0 if found is None else int(found(device))


def peak_bytes() -> int:
    """Of this process so far, 0 where the system does not say.

    Linux counts what started a process into its ru_maxrss; what /proc says is its own.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    own = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if own is not None:
        return 1024 * int(own[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
