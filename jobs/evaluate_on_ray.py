"""An evaluation's batches of chunks spread over the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantmill.jobs.carrier import from_root, inputs_of
from quantmill.jobs.cluster import connected
from quantmill.jobs.crew import Crew
from quantmill.jobs.elsewhere import Elsewhere, Shares, files_of, memory_of
from quantmill.jobs.evaluate_carrier import ScoreCarrier, Task
from quantmill.jobs.watcher import Watcher
from quantmill.models.workers import Workers


class _Scoring(Elsewhere):
    """All models against the base; `of` one model alone."""

    def __init__(self, crew: Crew, n_models: int, model: int | None = None) -> None:
        super().__init__(crew, lambda item: (model, *item), amount=lambda item: n_models * item[1].size)
        self._of = crew

    def of(self, model: int) -> Workers:
        return _Scoring(self._of, 1, model)


@contextmanager
def scoring_on_ray(
    address: str,
    threads: int | None,
    paths: Sequence[Path],
    has_base: bool,
    base_file: Path | None,
    device: str,
    dtype: str,
    tokenizer: Path | None,
    watcher: Watcher,
) -> Iterator[Workers]:
    """Workers for jobs.passes. Raises JobError for a cluster that cannot be used, or whose hosts see other files."""
    read = [*(file for path in paths for file in files_of(path)), *([base_file] if base_file else [])]
    task = Task(
        from_root(tuple(paths)),
        has_base,
        from_root(base_file),
        device,
        dtype,
        from_root(tokenizer),
        inputs_of(read),
    )
    with (
        connected(address, threads) as ray,
        Crew(
            ray,
            ScoreCarrier,
            lambda node: task,
            watcher,
            Shares(threads, device),
            memory=memory_of(paths),
        ) as crew,
    ):
        yield _Scoring(crew, len(paths))
