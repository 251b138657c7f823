"""What was left out of a pruned file, as the file says, and what each layer and expert was worth."""

from __future__ import annotations

from collections.abc import Sequence

from quantmill.measure.record import PRUNED, ModelFile
from quantmill.measure.report.collect import Report
from quantmill.measure.report.tables import Table


def pruned(report: Report) -> Table | None:
    """A row a pruned file; None when there is none."""
    rows = []
    for file in _files(report):
        experts, layers = _numbers(file, "experts"), _numbers(file, "experts_layers")
        each = f"{len(experts) // len(layers)} of {_said(file, 'experts_of')}" if layers else ""
        layers_gone = ", ".join(_list(file, "layers"))
        count = f" of {_said(file, 'layers_of')}" if layers_gone and _said(file, "layers_of") else ""
        rows.append(
            (
                file.name,
                f"{layers_gone}{count}",
                each,
                _said(file, "chosen_by"),
                _rounded(_said(file, "kld_unhealed")),
                _rounded(_said(file, "kld")),
            )
        )
    head = ("model", "layers left out", "experts a layer", "chosen", "KLD as cut", "KLD healed")
    return Table(head, tuple(rows)) if rows else None


def by_layer(report: Report) -> Table | None:
    """Block influence of every layer, and the divergence without it alone where that was measured."""
    rows = []
    for file in _different(report, "influence", "layers", "measured_kld"):
        measured = dict(zip(_list(file, "measured"), _list(file, "measured_kld"), strict=False))
        gone = set(_list(file, "layers"))
        for layer, value in enumerate(_list(file, "influence")):
            kld = _rounded(measured.get(str(layer), ""))
            rows.append((file.name, str(layer), _rounded(value), kld, "yes" * (str(layer) in gone)))
    head = ("model", "layer", "block influence", "KLD without it", "left out")
    return Table(head, tuple(rows)) if rows else None


def by_expert(report: Report) -> Table | None:
    """The experts that were left out of each layer, with their share of what its experts put out on the text."""
    rows = []
    for file in _different(report, "experts_layers", "experts", "experts_share"):
        layers, experts = _list(file, "experts_layers"), _list(file, "experts")
        shares = _numbers(file, "experts_share")
        each = len(experts) // len(layers)
        if not each:
            continue
        for i, layer in enumerate(layers):
            part = slice(i * each, (i + 1) * each)
            share = f"{100 * sum(shares[part]):.1f} %" if shares else ""
            rows.append((file.name, layer, ", ".join(experts[part]), share))
    head = ("model", "layer", "experts left out", "their share of the output")
    return Table(head, tuple(rows)) if rows else None


def _different(report: Report, *keys: str) -> list[ModelFile]:
    """The files that say the first of these; of those that say the same in all of them one, the others are alike."""
    found: dict[tuple[str, ...], ModelFile] = {}
    for file in _files(report):
        found.setdefault(tuple(_said(file, key) for key in keys), file)
    return [file for file in found.values() if _list(file, keys[0])]


def _files(report: Report) -> list[ModelFile]:
    return [
        result.file for result in report.models if any(key.startswith(PRUNED) for key in result.file.facts)
    ]


def _said(file: ModelFile, key: str) -> str:
    return file.facts.get(PRUNED + key, "")


def _list(file: ModelFile, key: str) -> list[str]:
    return [word for word in _said(file, key).split(",") if word]


def _numbers(file: ModelFile, key: str) -> Sequence[float]:
    try:
        return [float(word) for word in _list(file, key)]
    except ValueError:  # a file may say anything
        return []


def _rounded(text: str) -> str:
    try:
        return f"{float(text):.4f}"
    except ValueError:
        return text
