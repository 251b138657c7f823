"""Several records as one: what was measured about the same file, by its hash, belongs together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import PurePath
from typing import TypeVar
from urllib.parse import quote

from quantmill.escape import escaped
from quantmill.measure.errors import MeasureError
from quantmill.measure.record import Comparison, ModelFile, ModelResult, Run

_T = TypeVar("_T")

LAYER = re.compile(r"^blk\.(\d+)\.(.+?)(?:\.weight)?$")


@dataclass(frozen=True)
class HeatMap:
    """Values by layer and kind of tensor: columns are kinds, rows layers. text: what a cell shows, "" for none;
    level: 0 to 1, how dark it is; hint: what it says when pointed at."""

    title: str
    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    text: tuple[tuple[str, ...], ...]
    level: tuple[tuple[float, ...], ...]
    hint: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """models: best first where there is a ranking, else by size. labels: names without their common beginning. links:
    of models, name of the file in a URL."""

    title: str
    runs: tuple[Run, ...]
    models: tuple[ModelResult, ...]
    base: ModelResult | None
    comparisons: tuple[Comparison, ...]
    labels: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    heat_maps: tuple[HeatMap, ...] = ()

    @property
    def results(self) -> list[ModelResult]:
        return ([self.base] if self.base else []) + list(self.models)


def collect(runs: Sequence[Run], title: str | None = None, heat_maps: Sequence[HeatMap] = ()) -> Report:
    """Merge records of the same base. heat_maps: further maps (importance) to show after those of types.

    Names come from files: what could steer a terminal or end a line in them is escaped here, for all that show a
    report. Raises MeasureError when records compare with different bases or texts.
    """
    links = {
        escaped(result.file.name): quote(PurePath(result.file.path).name)
        for run in runs
        for result in run.models
    }
    runs, heat_maps = showable(tuple(runs)), showable(tuple(heat_maps))
    title = None if title is None else escaped(title)
    texts = {(run.text.sha256, run.text.n_ctx, run.text.n_chunks): run for run in runs if run.text}
    if len(texts) > 1:
        raise MeasureError(
            "the records were measured on different texts, contexts or numbers of chunks; their numbers do not "
            "compare. Report them one by one"
        )
    bases = {run.base.file.sha256: run.base for run in runs if run.base}
    if len(bases) > 1:
        listed = ", ".join(base.file.name for base in bases.values())
        raise MeasureError(f"the records compare with different bases ({listed}); report them one by one")
    base = next(iter(bases.values()), None)
    merged: dict[str, ModelResult] = {}
    for run in runs:
        for result in [*run.models, *([run.base] if run.base else [])]:
            known = merged.get(result.file.sha256)
            merged[result.file.sha256] = result if known is None else _merged(known, result)
    if base is not None:
        base = merged.pop(base.file.sha256)
    models = sorted(
        merged.values(),
        key=lambda r: (r.divergence is None, r.divergence.kld.value if r.divergence else -r.file.bytes),
    )
    comparisons = tuple(dict.fromkeys(c for run in runs for c in run.comparisons))
    names = [result.file.name for result in models]
    start = _common_start(names)
    return Report(
        title=title or _model_name(base or models[0]),
        runs=tuple(runs),
        models=tuple(models),
        base=base,
        comparisons=comparisons,
        labels={name: name[start:] or name for name in names},
        links=links,
        heat_maps=(*(type_map(result.file) for result in models), *heat_maps),
    )


def _model_name(result: ModelResult) -> str:
    """What the model calls itself, else its file's name."""
    return result.file.facts.get("general.name") or result.file.name


def without_paths(command: str) -> str:
    """A command line with names in place of paths: what lies before a file's name is its owner's business."""
    words = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        words.append(option + equals + (PurePath(value).name if "/" in value else value))
    return shlex.join(words)


def showable(record: _T) -> _T:
    """A record, or several, with all its words escaped."""
    if isinstance(record, str):
        return escaped(record)  # type: ignore[return-value]
    if isinstance(record, tuple | list | frozenset):
        return type(record)(map(showable, record))  # type: ignore[return-value]
    if isinstance(record, Mapping):
        return {showable(key): showable(value) for key, value in record.items()}  # type: ignore[return-value]
    if is_dataclass(record) and not isinstance(record, type):
        changed = {one.name: showable(getattr(record, one.name)) for one in fields(record)}
        return replace(record, **changed)  # type: ignore[return-value]
    return record


def _common_start(names: Sequence[str]) -> int:
    """Length of what all names begin with, up to a separator: Q4_K_M and Q4_K_S must not become M and S."""
    if len(names) < 2:
        return 0
    same = next((i for i, chars in enumerate(zip(*names, strict=False)) if len(set(chars)) > 1), 0)
    return max(names[0].rfind(sign, 0, same) + 1 for sign in "-./ ")


def _merged(a: ModelResult, b: ModelResult) -> ModelResult:
    if a.file.name != b.file.name:
        b = replace(b, file=a.file)
    return ModelResult(
        file=a.file,
        ppl=a.ppl or b.ppl,
        divergence=a.divergence or b.divergence,
        chunk_kld=a.chunk_kld or b.chunk_kld,
        tasks=a.tasks or b.tasks,
        speed=a.speed or b.speed,
        lm_eval=a.lm_eval or b.lm_eval,
    )


def type_map(file: ModelFile) -> HeatMap:
    """The type of every matrix of a file, darker with more bits; tensors outside the layers come last."""
    cells: dict[tuple[str, str], tuple[str, float, str]] = {}
    kinds: dict[str, None] = {}
    layers: dict[str, None] = {}
    outside: list[str] = []
    for row in file.tensors:
        if row.type in ("F32", "I32") and row.n_weights < 1 << 20:
            continue  # norms, biases and routers are never quantized
        match = LAYER.match(row.name)
        layer, kind = (match[1], match[2]) if match else ("", row.name.removesuffix(".weight"))
        bits = 8 * row.n_bytes / row.n_weights
        hint = f"{row.name}: {row.type}, {bits:.2f} bits per weight, {row.n_weights} weights"
        if not match:
            outside.append(kind)
        else:
            layers[layer] = None
        kinds[kind] = None
        # 1 to 9 bits cover all quantized types; what has more stays darkest.
        cells[layer, kind] = (row.type, min(1.0, max(0.0, (bits - 1.5) / 7)), hint)
    order = [*sorted(layers, key=int), *([""] if outside else [])]
    kinds = dict.fromkeys([*(kind for kind in kinds if kind not in outside), *outside])
    empty = ("", 0.0, "")
    grid = [[cells.get((layer, kind), empty) for kind in kinds] for layer in order]
    return HeatMap(
        title=f"{file.name}: {file.bits_per_weight:.2f} bits per weight",
        kinds=tuple(kinds),
        layers=tuple(layer or "—" for layer in order),
        text=tuple(tuple(cell[0] for cell in row) for row in grid),
        level=tuple(tuple(cell[1] for cell in row) for row in grid),
        hint=tuple(tuple(cell[2] for cell in row) for row in grid),
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of points (x, y) that no other point beats in both, by growing x; less is better."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front
