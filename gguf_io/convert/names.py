"""Hugging Face tensor names ↔ GGUF tensor names, and what happens to the values in between, both ways.

    table = tensor_table(family, config, {name: shape for every tensor of the model})

`config` is the family's completed configuration (Family.completed), the names are a checkpoint's or those of
`model.state_dict()`: experts may be stored one by one (`mlp.experts.7.up_proj.weight`) or stacked and fused
(`mlp.experts.gate_up_proj`). Then

    table.views["blk.0.ffn_up_exps.weight"]      a View: sources, shape and how they are cut
    table.uses["model.layers.0.mlp.experts.7.up_proj.weight"]
                                                 (Use("blk.0.ffn_up_exps.weight", 7),)
    table.uses["model.layers.0.mlp.experts.gate_up_proj"]
                                                 (Use("blk.0.ffn_gate_exps.weight", None),
                                                  Use("blk.0.ffn_up_exps.weight", None))
    table.to_gguf(name, read)                    read(hf_name) -> array;  the GGUF tensor
    table.to_hf(name, read, empty=torch.empty)   read(gguf_name) -> array; the Hugging Face tensor

Arrays are numpy or torch; dimension order is Hugging Face's: rows before columns, the reverse of ggml's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import gguf
import numpy as np

from quantmill.gguf_io.convert import cuts, layout, rules
from quantmill.gguf_io.convert.config import EXPERT_COUNTS
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.rules import Config, Part, Rule
from quantmill.gguf_io.convert.view import Shape, View
from quantmill.gguf_io.errors import GGUFError


@dataclass(frozen=True)
class Use:
    name: str  # of the GGUF tensor
    matrix: int | None  # which of its matrices, None: all of them


@dataclass(frozen=True)
class TensorTable:
    family: Family
    views: Mapping[str, View]  # in the order of llama.cpp's converter
    uses: Mapping[str, tuple[Use, ...]]
    left_out: tuple[str, ...]
    must_be_zero: tuple[str, ...]  # left out on condition that every value is zero
    shapes: Mapping[str, Shape]

    def to_gguf(self, name: str, read: Callable[[str], Any]) -> Any:
        """The GGUF tensor `name` in Hugging Face dimension order, from read(hf_name).

        For whole tensors in memory; a checkpoint on disk is read in slabs (checkpoint.py).
        """
        view = self.views[name]
        stacks = [read(source).reshape(-1, *view.source_matrix) for source in view.sources]
        taken = [view.take(matrix) for stack in stacks for matrix in stack]
        if view.product:
            return (taken[0].reshape(-1) * taken[1].reshape(-1)).reshape(view.stored_shape)
        return (taken[0] if len(taken) == 1 else _stack(taken)).reshape(view.stored_shape)

    def to_hf(self, name: str, read: Callable[[str], Any], empty: Callable[[Shape], Any] = np.empty) -> Any:
        """The Hugging Face tensor `name` from read(gguf_name) (GGUF values, Hugging Face dimension order).

        Raises KeyError when no GGUF tensor comes from it (a tied lm_head, a buffer).
        """
        out = empty(self.shapes[name])
        for use in self.uses[name]:
            view = self.views[use.name]
            matrices = out.reshape(-1, *view.source_matrix)
            n_rows = view.source_matrix[0] if view.vector else view.shape[-2]
            values = read(use.name).reshape(view.matrices, n_rows, -1)
            for m, matrix in enumerate(matrices):
                view.put(matrix, values[m if use.matrix is None else use.matrix])
        return out


def tensor_table(
    family: Family, config: Config, shapes: Mapping[str, Shape], first: Set[str] = frozenset()
) -> TensorTable:
    """The table for a model of these tensors. first: those that llama.cpp's converter writes before all others.

    Raises GGUFError: a tensor without a GGUF name, one that is missing or of another shape than config says, missing
    experts.
    """
    builder = _Builder(family, config, dict(shapes), first)
    for position, name in enumerate(shapes):
        builder.place(position, name)
    return builder.finish()


def _stack(matrices: list[Any]) -> Any:
    if isinstance(matrices[0], np.ndarray):
        return np.stack(matrices)
    import torch

    return torch.stack(matrices)


class _Builder:
    """Collects views in the converter's order: an expert stack appears where its block's last expert does."""

    def __init__(self, family: Family, config: Config, shapes: dict[str, Shape], first: Set[str]):
        self.family, self.config, self.shapes, self.first = family, config, shapes, first
        later = family.nextn.rules if family.nextn and config.get("nextn") else ()
        own = (*later, *family.rules)
        self.rules = tuple((re.compile(rule.pattern), rule) for rule in (*rules.COMMON, *own))
        self.n_layers = config["num_hidden_layers"] + config.get("nextn", 0)
        self.expected = family.expected(config)
        self.map = gguf.get_tensor_name_map(family.named_as, self.n_layers)
        self.views: dict[str, View] = {}
        self.order: dict[str, tuple[bool, int, int, str]] = {}
        self.experts: dict[str, dict[int, str]] = {}
        self.counts: dict[str, str | None] = {}
        self.joined: set[str] = set()
        self.expert_block_end: dict[str, int] = {}
        self.left_out: list[str] = []
        self.must_be_zero: list[str] = []

    def place(self, position: int, name: str) -> None:
        cleaned = _cleaned(name)
        if self.family.nextn and self.config.get("nextn"):
            cleaned = self.family.nextn.renamed(cleaned, self.config["num_hidden_layers"])
        if self.config.get("nextn_only") and self._of_trunk(cleaned):
            self.left_out.append(name)
            return
        match, rule = self._rule_for(cleaned)
        if rule is not None and not rule.parts:
            (self.must_be_zero if rule.zero else self.left_out).append(name)
            return
        if rule is None or match is None:
            self._add(position, name, self._gguf_name(name, cleaned), Part())
            return
        for part in rule.parts:
            renamed = cleaned[: match.start()] + match.expand(part.name) + cleaned[match.end() :]
            target = self._gguf_name(name, renamed)
            if "expert" in match.groupdict():
                self._add_expert(position, name, target, int(match["expert"]))
                self.counts[target] = rule.count
                self.joined |= {target} if rule.joined else set()
                self.order[target] = (True, position, rule.order, match.expand(part.name))
            else:
                self._add(position, name, target, part)

    def _of_trunk(self, name: str) -> bool:
        layer = re.search(r"\blayers\.(\d+)\.", name)
        return layer is not None and int(layer[1]) < self.config["num_hidden_layers"]

    def _rule_for(self, name: str) -> tuple[re.Match[str] | None, Rule | None]:
        for pattern, rule in self.rules:
            match = pattern.search(name)
            if match and (rule.when is None or rule.when(self.config, match)):
                return match, rule
        return None, None

    def _gguf_name(self, name: str, renamed: str) -> str:
        if renamed in self.expected:
            return renamed
        found = self.map.get_name(renamed, try_suffixes=(".weight", ".bias"))
        if found is not None:
            return found
        layer, n_layers = re.search(r"\blayers\.(\d+)\.", renamed), self.config["num_hidden_layers"]
        if layer and int(layer[1]) >= n_layers:
            raise GGUFError(f"{name}: config.json's num_hidden_layers is {n_layers}")
        raise GGUFError(f"{name}: architecture {self.family.name} has no GGUF tensor for this name")

    def _usual_name(self, target: str) -> str | None:
        stem, _, suffix = target.rpartition(".")
        for name, (_, gguf_name) in self.map.mapping.items():
            if gguf_name == stem and name.startswith(("model.", "lm_head")):
                return f"{name}.{suffix}"
        return None

    def _add(self, position: int, name: str, target: str, part: Part) -> None:
        view, other = self._cut(name, target, part), self.views.get(target)
        if other is not None:
            if not (part.product and len(other.sources) == 1):
                raise GGUFError(f"{name}: {target} is already made of {other.sources[0]}")
            if view.shape != other.shape:
                raise GGUFError(
                    f"{name}: has shape {list(view.shape)}, {other.sources[0]} {list(other.shape)}; "
                    f"{target} is their product"
                )
            view = replace(view, sources=(*other.sources, name))
        self.views[target] = view
        self.order[target] = (name not in self.first, position, 0, "")

    def _cut(self, name: str, target: str, part: Part) -> View:
        return cuts.cut(name, self.shapes[name], part, self.config, target, self.expected.get(target))

    def _add_expert(self, position: int, name: str, target: str, expert: int) -> None:
        of_tensor = self.experts.setdefault(target, {})
        if expert in of_tensor:
            raise GGUFError(f"{name}: expert {expert} of {target} is already {of_tensor[expert]}")
        of_tensor[expert] = name
        self.expert_block_end[target.rpartition(".ffn_")[0]] = position

    def finish(self) -> TensorTable:
        for target, view in self.views.items():
            if view.product and len(view.sources) == 1:
                raise GGUFError(
                    f"one of the two tensors whose product is {target} is missing, {view.sources[0]} is there: "
                    "the checkpoint is incomplete"
                )
        for target, of_tensor in self.experts.items():
            self.views[target] = self._expert_stack(target, of_tensor)
            self.order[target] = self._place_of_stack(target, of_tensor)
        views = {name: self.views[name] for name in sorted(self.views, key=lambda name: self.order[name])}
        uses: dict[str, tuple[Use, ...]] = {}
        for target, view in views.items():
            for i, source in enumerate(view.sources):
                use = Use(target, i if target in self.experts else None)
                uses[source] = (*uses.get(source, ()), use)
        found = {name: (_sources(view), view.stored_shape) for name, view in views.items()}
        first = self.config["num_hidden_layers"] if self.config.get("nextn_only") else 0
        layout.check(self.expected, found, range(first, self.n_layers), self._usual_name)
        left_out, must_be_zero = tuple(self.left_out), tuple(self.must_be_zero)
        return TensorTable(self.family, views, uses, left_out, must_be_zero, self.shapes)

    def _place_of_stack(self, target: str, of_tensor: dict[int, str]) -> tuple[bool, int, int, str]:
        """Behind the last expert of its block; what comes before all others, behind its own last."""
        _, last, order, name = self.order[target]
        behind = not set(of_tensor.values()) <= self.first
        end = self.expert_block_end[target.rpartition(".ffn_")[0]] if behind else last
        return (behind, end, order, name)

    def _expert_stack(self, target: str, of_tensor: dict[int, str]) -> View:
        count = self.counts[target]
        named = (self.config.get(key) for key in (EXPERT_COUNTS if count is None else (count,)))
        n_experts = next((n for n in named if n), max(of_tensor) + 1)
        missing = [i for i in range(n_experts) if i not in of_tensor]
        if missing or len(of_tensor) != n_experts:
            raise GGUFError(
                f"{target}: {len(of_tensor)} of {n_experts} experts are there, missing {missing[:8]}"
            )
        shapes = {self.shapes[name] for name in of_tensor.values()}
        if len(shapes) > 1:
            raise GGUFError(f"{target}: experts differ in shape: {sorted(shapes)}")
        one = self._cut(of_tensor[0], target, Part())
        sources = tuple(of_tensor[i] for i in range(n_experts))
        return replace(one, sources=sources, shape=(n_experts, *one.shape), joined=target in self.joined)


def _sources(view: View) -> str:
    """What a message calls the origin of a view."""
    return (
        view.sources[0]
        if len(view.sources) == 1
        else f"{view.sources[0]} and {len(view.sources) - 1} like it"
    )


def _cleaned(name: str) -> str:
    """The name as gguf's table knows it: no multimodal wrapper, the router's bias named as a bias."""
    name = name.replace("language_model.", "")
    return re.sub(r"e_score_correction_bias$", "e_score_correction.bias", name)
