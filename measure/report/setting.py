"""What a squeeze knows beside its measurements: other repositories' sizes, predictions, reasons, the source's card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from quantmill.escape import escaped
from quantmill.measure.report.collect import Report, showable
from quantmill.measure.report.tables import Table

GB = 1e9


@dataclass(frozen=True)
class Rival:
    """Files of another repository. sizes: bytes by the name of the file of ours that is of the same type."""

    repository: str
    sizes: Mapping[str, int]

    @property
    def owner(self) -> str:
        return self.repository.partition("/")[0]


@dataclass(frozen=True)
class Prediction:
    """Loss of types that were found for a size: predicted from single tensors, and measured of all together, on
    held-back chunks of the calibration. name: of the file."""

    name: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Setting:
    """reasons: why each file was chosen, by its name. recipes: its recipe's file, by its name. importance: file of the
    importance matrix, and the texts it is from. datasets, language, license_name, license_link, pipeline_tag: for the
    card's header. fit: how a size was found for a memory. others: names of files that are not ours, measured beside.
    links: filled in by `shown`."""

    rivals: tuple[Rival, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)
    importance: tuple[str, tuple[str, ...]] | None = None
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    license_file_name: str | None = None
    license_link: str | None = None
    pipeline_tag: str = "text-generation"
    fit: str | None = None
    left_out: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()
    links: Mapping[str, str] = field(default_factory=dict)

    def link(self, file: str) -> str:
        """A file beside the card or page, in a URL."""
        return self.links.get(file, quote(file))


NO_SETTING = Setting()


def shown(setting: Setting) -> Setting:
    """All its words as they may be shown, links still leading to their files."""
    files = [*setting.recipes.values(), *([setting.importance[0]] if setting.importance else [])]
    return replace(showable(setting), links={escaped(file): quote(file) for file in files})


def own(report: Report, setting: Setting) -> Report:
    """The report without files that are not ours: what can be chosen, downloaded and linked."""
    return replace(report, models=tuple(r for r in report.models if r.file.name not in setting.others))


def sizes(report: Report, setting: Setting) -> Table | None:
    """Sizes in GB beside the rivals', and how much smaller ours is than the first of them that has such a file."""
    if not setting.rivals:
        return None
    rows = []
    for result in sorted(report.models, key=lambda one: one.file.name):
        name = result.file.name
        others = [rival.sizes.get(name) for rival in setting.rivals]
        first = next((size for size in others if size is not None), None)
        if first is None:
            shrinkage = "–"
        else:
            shrinkage = f"{100 * (first - result.file.bytes) / first:.1f} %"
        cells = ["N/A" if size is None else gigabytes(size) for size in others]
        rows.append((name, *cells, gigabytes(result.file.bytes), shrinkage))
    head = ("model", *(rival.owner for rival in setting.rivals), "here", "shrinkage")
    return Table(head, tuple(rows))


def gigabytes(n_bytes: int) -> str:
    """One digit behind the point as cards have it, more where that would say nothing."""
    value = n_bytes / GB
    return f"{value:.1f}" if value >= 1 else f"{value:.4f}"


def reasons(report: Report, setting: Setting) -> list[tuple[str, str]]:
    """(file, why it was chosen), in the order of the report."""
    return [
        (r.file.name, setting.reasons[r.file.name]) for r in report.models if r.file.name in setting.reasons
    ]
