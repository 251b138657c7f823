"""The keys `quantmill.pruned.*` of a file: which layers and experts went, by the numbers they had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from quantmill.jobs.compensate_plan import digest
from quantmill.jobs.prune_request import Pruned
from quantmill.recipe import Override

PREFIX = "quantmill.pruned."
_TEXT, _U32, _F32 = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.FLOAT32


def facts_of(pruned: Pruned) -> tuple[Override, ...]:
    values: dict[str, MetaValue] = {}
    if pruned.layers:
        values["layers"] = _numbers(pruned.layers)
        values["layers_of"] = MetaValue(_U32, pruned.n_layers)
    if pruned.experts:
        values |= _of_experts(pruned.experts, pruned.n_experts)
    if pruned.chosen_by:
        values["chosen_by"] = MetaValue(_TEXT, "; ".join(pruned.chosen_by))
    values |= _of_damage(pruned)
    values["merged"] = MetaValue(GGUFValueType.BOOL, pruned.merged)
    values["refitted"] = MetaValue(_U32, len(pruned.refitted))
    values["kld"] = MetaValue(_F32, pruned.kld)
    values["kld_unhealed"] = MetaValue(_F32, pruned.cut.kld.value)
    values["chunks"] = MetaValue(_U32, len(pruned.chunks))
    values["tokens_sha256"] = MetaValue(_TEXT, digest(pruned.chunks))
    return _overrides(values)


def _of_damage(pruned: Pruned) -> dict[str, MetaValue]:
    """What each layer was worth: block influence of all, the divergence without it of those that were measured; of the
    experts that left, the share of what the experts of their layer put out on the text."""
    values = {}
    if pruned.influence and pruned.layers:
        values["influence"] = _floats(pruned.influence)
    if pruned.measured and pruned.layers:
        values["measured"] = _numbers(list(pruned.measured))
        values["measured_kld"] = _floats(list(pruned.measured.values()))
    if pruned.shares:
        values["experts_share"] = _floats(pruned.shares)
    return values


def facts_of_weights(experts: Mapping[int, tuple[int, ...]], n_experts: int) -> tuple[Override, ...]:
    """Of experts that were chosen by their weights alone."""
    return _overrides(_of_experts(experts, n_experts) | {"chosen_by": MetaValue(_TEXT, "experts by AIMER")})


def _of_experts(experts: Mapping[int, tuple[int, ...]], n_experts: int) -> dict[str, MetaValue]:
    """experts: those that left, as many of every layer; laid end to end in the order of the layers."""
    return {
        "experts": _numbers([expert for gone in experts.values() for expert in gone]),
        "experts_layers": _numbers(list(experts)),
        "experts_of": MetaValue(_U32, n_experts),
    }


def _numbers(values: Sequence[int]) -> MetaValue:
    return MetaValue(GGUFValueType.ARRAY, list(values), _U32)


def _floats(values: Sequence[float]) -> MetaValue:
    return MetaValue(GGUFValueType.ARRAY, list(values), _F32)


def _overrides(values: Mapping[str, MetaValue]) -> tuple[Override, ...]:
    return tuple(Override(PREFIX + key, value, str(value.value)) for key, value in values.items())
