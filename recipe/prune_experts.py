"""Dropping experts: which tensors are cut along their experts, which counts change, and what llama.cpp can load.

A GGUF says one number of experts for all layers, so every layer keeps as many; which ones is each layer's own. The axis
of the experts is the outermost one of every stack: a cut copies whole blocks. Where a router chooses groups of experts
first, every group keeps as many.
Source of the rules: src/llama-model.cpp: load_hparams; src/llama-graph.cpp: build_moe_ffn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantmill.gguf_io import TensorSpec
from quantmill.gguf_io.metadata import Metadata, MetaValue
from quantmill.recipe.errors import RecipeError

# Tensors whose outermost axis counts the experts: stacks, their biases and factors, the router's rows and its bias.
OF_EXPERTS = re.compile(
    r"blk\.(\d+)\.(?:ffn_(?:gate|up|down|gate_up)_exps\.(?:weight|bias|scale|input_scale)"
    r"|ffn_gate_inp\.(?:weight|bias)|exp_probs_b(?:_vl)?(?:\.bias)?)"
)
# Experts within experts (GroveMoE): whole sets of experts share one.
_CHUNKS = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)_chexps\.")
# Which experts every token of the vocabulary goes to, in layers without a router (DeepSeek-V4).
_TABLE = re.compile(r"blk\.(\d+)\.ffn_gate_tid2eid(?:\.weight)?")
_LEAST_IN_GROUP = 2  # llama.cpp ranks groups by their best two


@dataclass(frozen=True)
class Experts:
    """What the metadata says of a model's experts. n_groups, n_groups_used: 1 where there are no groups."""

    n: int
    n_used: int
    n_groups: int = 1
    n_groups_used: int = 1

    def groups(self) -> list[range]:
        each = self.n // self.n_groups
        return [range(i * each, (i + 1) * each) for i in range(self.n_groups)]


@dataclass(frozen=True)
class Share:
    """How many experts leave every layer: a number, or a part of them (a quarter: 0.25)."""

    amount: int | float

    def of(self, experts: Experts) -> int:
        """A part is rounded to what the groups allow. Raises RecipeError for what leaves no model that can be run."""
        n = self.amount
        if isinstance(n, float):
            n = experts.n_groups * round(n * experts.n / experts.n_groups)
        _check(experts, n)
        return n


def parse_share(text: str) -> Share:
    """`0.25`, `auto:0.25` → a part; `32`, `auto:32` → a number. Raises RecipeError."""
    word = text.removeprefix("auto:")
    if word.isascii() and word.isdigit() and int(word) > 0:
        return Share(int(word))
    try:
        part = float(word)
    except ValueError:
        part = 0.0
    if not 0 < part < 1:
        raise RecipeError(
            f"--prune-experts {text!r}: expected a part such as 0.25, or how many leave every layer, such as 32"
        )
    return Share(part)


def find_experts(metadata: Metadata, specs: Iterable[TensorSpec]) -> Experts:
    """Raises RecipeError for a model without experts, or with experts that cannot be cut."""
    arch = metadata.value("general.architecture")
    n = metadata.number(f"{arch}.expert_count")
    names = [spec.name for spec in specs]
    if not n or not any(OF_EXPERTS.fullmatch(name) for name in names):
        raise RecipeError(f"--prune-experts: the model has no experts (architecture {arch})")
    for name in names:
        if _CHUNKS.match(name):
            raise RecipeError(
                f"--prune-experts: {name}: experts that are shared by sets of experts cannot be cut"
            )
    return Experts(
        n,
        metadata.number(f"{arch}.expert_used_count", 1),
        metadata.number(f"{arch}.expert_group_count") or 1,
        metadata.number(f"{arch}.expert_group_used_count") or 1,
    )


def _check(experts: Experts, n: int) -> None:
    left = experts.n - n
    if n < 1:
        raise RecipeError(f"--prune-experts: of {experts.n} experts none would leave; ask for a larger part")
    if left < 1:
        raise RecipeError(f"--prune-experts {n}: the model has {experts.n} experts, none would remain")
    if left < experts.n_used:
        raise RecipeError(
            f"--prune-experts {n}: every token uses {experts.n_used} of {experts.n} experts, {left} would remain; at "
            f"most {experts.n - experts.n_used} can leave"
        )
    if experts.n_groups == 1:
        return
    if left % experts.n_groups:
        raise RecipeError(
            f"--prune-experts {n}: the {left} experts that remain cannot be divided into {experts.n_groups} groups; "
            f"give a multiple of {experts.n_groups}"
        )
    each = left // experts.n_groups
    least = max(_LEAST_IN_GROUP, -(-experts.n_used // experts.n_groups_used))
    if each < least:
        raise RecipeError(
            f"--prune-experts {n}: {each} experts a group would remain; the router needs {least} in each of "
            f"{experts.n_groups} groups"
        )


def least_salient(saliency: Sequence[float], n: int, experts: Experts) -> tuple[int, ...]:
    """The experts that stay when the n least salient of a layer leave, as many from every group; ascending.

    saliency: [n_experts], larger is kept; of equals the first stay.
    """
    each = n // experts.n_groups
    gone: set[int] = set()
    for group in experts.groups():
        gone |= set(sorted(group, key=lambda expert: (saliency[expert], -expert))[:each])
    return tuple(expert for expert in range(experts.n) if expert not in gone)


def expert_layers(specs: Iterable[TensorSpec]) -> tuple[int, ...]:
    """Layers that have experts, those for predicting several tokens too."""
    found = {int(match[1]) for spec in specs if (match := OF_EXPERTS.fullmatch(spec.name))}
    return tuple(sorted(found))


def cut_tensors(
    specs: Iterable[TensorSpec], experts: Experts, kept: Mapping[int, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Tensor → the parts of its outermost axis that stay. kept: layer → its experts.

    Raises RecipeError for a tensor of another number of experts than the metadata says.
    """
    found = {}
    for spec in specs:
        match = OF_EXPERTS.fullmatch(spec.name)
        if match is None:
            continue
        if spec.shape[-1] != experts.n:
            raise RecipeError(
                f"{spec.name}: has shape {list(spec.shape)}, its last dimension should be the {experts.n} experts of "
                "the metadata"
            )
        found[spec.name] = kept[int(match[1])]
    return found


def routing_tables(specs: Iterable[TensorSpec]) -> dict[str, int]:
    """Tables that say which experts a token goes to → their layer."""
    return {spec.name: int(match[1]) for spec in specs if (match := _TABLE.fullmatch(spec.name))}


def cut_metadata(metadata: Metadata, n_kept: int) -> Metadata:
    """With the number of experts corrected in its place. How many a token uses, groups and shared ones stay."""
    key = f"{metadata.value('general.architecture')}.expert_count"
    return metadata.replace(key, MetaValue(metadata[key].type, n_kept))
