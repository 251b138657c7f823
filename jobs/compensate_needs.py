"""What a compensation will take, said before it begins: memory, operations, and how long a GPU would need for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from quantmill.errors import counted
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.compensated import compensated_entries, resident_bytes
from quantmill.jobs.quantize import Job
from quantmill.recipe import Plan

if TYPE_CHECKING:
    from quantmill.calibrate.costs import Work
    from quantmill.models.model import LoadedModel

# Of a device's memory, what a run plans with: of the rest torch and the driver need some.
SHARE = 0.9


@dataclass(frozen=True)
class Needs:
    """n_tokens: of the text; missing: chunks that were wanted and are not in it. square: columns of the largest second
    moments, n_mat: matrices that have such ones.

    layer_bytes: what a layer takes beside the model, at most; total_bytes: with the model and, where the CPU computes,
    what is held already. place: whose memory it is. main_bytes: what of it lies in main memory, the device being too
    small; then it is not in the others.
    work: operations of all layers. cut: tensors whose columns are treated in parts, being more than `widest`.
    """

    n_tokens: int
    square: int
    n_mat: int
    widest: int
    layer_bytes: int
    total_bytes: int
    work: Work
    place: str = ""
    main_bytes: int = 0
    cut: tuple[str, ...] = ()
    missing: int = 0

    @property
    def text(self) -> str:
        from quantmill.calibrate.costs import H100, text_of

        stack = f" of {self.n_mat} experts" if self.n_mat > 1 else ""
        seconds = H100.seconds(self.work)
        short = f" (the text has {counted(self.missing, 'chunk')} less than wanted)" if self.missing else ""
        parts = [
            f"{self.n_tokens} tokens{short}",
            f"largest square {self.square} x {self.square}{stack}",
            f"about {text_of(self.layer_bytes)} beside the model, {text_of(self.total_bytes)} in all{self.place}",
            f"{self.work.operations / 1e12:.1f} T operations (one {H100.name} by formula: {seconds / 60:.1f} minutes, "
            f"{H100.matmuls_s(self.work) / seconds:.0%} of them matmuls)",
        ]
        if self.main_bytes:
            parts.append(f"{text_of(self.main_bytes)} of what is kept of all tokens in main memory")
        if self.cut:
            more = f" and {len(self.cut) - 1} more" if len(self.cut) > 1 else ""
            parts.append(f"columns of {self.cut[0]}{more} are treated in parts of at most {self.widest}")
        return "; ".join(parts)


def needs_of(
    job: Job, calibration: Calibration, plan: Plan, loaded: LoadedModel, chunks: np.ndarray
) -> Needs:
    """Of a run that has its model loaded and its text read."""
    import torch

    from quantmill.calibrate.costs import Setting, kept_of, layer_of, memory_of, total, used_of, work_of
    from quantmill.calibrate.layer import WIDEST
    from quantmill.calibrate.output import rows_together
    from quantmill.calibrate.solver import EFFORTS
    from quantmill.models.capture import named_layers, widths
    from quantmill.models.memory import device_bytes
    from quantmill.models.packed import n_bytes
    from quantmill.models.scoring import input_ids
    from quantmill.models.walked_output import output_names
    from quantmill.models.workers import threads_for

    assert loaded.source is not None
    config = loaded.model.config.get_text_config()
    used = loaded.source.metadata.number(f"{loaded.architecture}.expert_used_count", 1)
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    entries = compensated_entries(plan, loaded)
    names = output_names(loaded)
    outputs = [entry for entry in entries if names is not None and entry.source == names[0]]
    for entry in entries:
        if entry in outputs:
            continue
        _, layer, kind = entry.source.split(".", 2)
        layers.setdefault(layer, {})[kind] = entry.shape
    threads = threads_for(loaded.device.type, job.threads)
    with torch.inference_mode():
        sample = input_ids(loaded, chunks[:1]).to(loaded.device)
        given = widths(loaded.model, named_layers(loaded.model)[1], sample)
    setting = Setting(
        chunks.size, chunks.shape[1], config.hidden_size, loaded.device.type, threads, WIDEST, *given
    )
    shapes = [layer_of(shapes, used) for shapes in layers.values()]
    two_streams = calibration.effort != "fast"
    effort = EFFORTS[calibration.effort]
    works = [work_of(layer, setting, effort, two_streams) for layer in shapes]
    for entry in outputs:  # it is not run itself; its rows are treated in parts
        n_cols, n_rows = entry.shape[:2]
        works.append(
            replace(work_of(layer_of({entry.source: (n_cols, n_rows)}, 1), setting, effort), passes=0)
        )
        shapes.append(layer_of({entry.source: (n_cols, min(n_rows, rows_together(n_cols)))}, 1))
    square, n_mat = max(((min(e.n_cols, WIDEST), e.n_matrices) for e in entries), default=(0, 1))
    layer_bytes = max((memory_of(layer, setting, two_streams) for layer in shapes), default=0)
    by_cpu, whole, main_bytes = loaded.device.type == "cpu", device_bytes(loaded.device), 0
    if whole is not None and layer_bytes + n_bytes(loaded.model) > SHARE * whole:
        main_bytes = max(kept_of(layer, setting, two_streams) for layer in shapes)
        layer_bytes = max(used_of(layer, setting) for layer in shapes)
    return Needs(
        n_tokens=chunks.size,
        square=square,
        n_mat=n_mat,
        widest=WIDEST,
        layer_bytes=layer_bytes,
        total_bytes=layer_bytes + n_bytes(loaded.model) + (resident_bytes() if by_cpu else 0),
        work=total(works),
        place="" if by_cpu else f" on {loaded.device}",
        main_bytes=main_bytes,
        cut=tuple(entry.name for entry in entries if entry.n_cols > WIDEST),
        missing=max(0, (calibration.cutting.n_chunks or 0) - len(chunks)),
    )
