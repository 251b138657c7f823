"""Layers behind the last that predict further tokens (NextN, MTP), run behind their model.

Such a layer is a model of one layer: what enters it is a projection of the model's last hidden states beside the
embeddings of the tokens that follow, and a norm and an output of its own, or the model's, are behind it. So it is
loaded as one, from the same file. Source: llama.cpp, src/models/glm4-moe.cpp: graph_mtp, and those of the other
architectures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from quantmill.gguf_io.convert.facts import Facts
from quantmill.gguf_io.convert.families import FAMILIES
from quantmill.gguf_io.convert.names import TensorTable, Use
from quantmill.gguf_io.convert.view import View
from quantmill.gguf_io.edited import EditedSource, Edits
from quantmill.gguf_io.metadata import Metadata, MetaValue
from quantmill.gguf_io.tensors import TensorSource
from quantmill.models.errors import ModelError
from quantmill.models.family import facts_of
from quantmill.models.fill import held_blocks
from quantmill.models.model import LoadedModel, from_source
from quantmill.models.packed import PackedLinear, PackedTensor, Piece

Norm = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (values [..., n], weight [n])
# The model's tensors that a layer has of its own, where it has: name in the model, name in the layer
_OWN = (
    ("token_embd.weight", "nextn.embed_tokens.weight"),
    ("output_norm.weight", "nextn.shared_head_norm.weight"),
    ("output_norm.weight", "layer_output_norm.weight"),
    ("output.weight", "nextn.shared_head_head.weight"),
)
# What numbers that count layers or kinds of them come to in a model of one layer, which is of the last kind
_OF_ONE = {
    "block_count": 1,
    "nextn_predict_layers": 0,
    "full_attention_interval": 1,
    "leading_dense_block_count": 0,
}


def attach(loaded: LoadedModel) -> LoadedModel:
    """The model whose further layers run after it whenever it runs, and whose table names their matrices.

    Raises ModelError for a model that has none, or whose none runs.
    """
    source = loaded.source
    assert source is not None, "a model of a directory is loaded as the GGUF that it becomes"
    facts = facts_of(source, loaded.path)
    count = facts.get("nextn_predict_layers", 0)
    if not count or not facts.has(f"blk.{facts.n_layers}.nextn.eh_proj.weight"):
        raise ModelError(
            f"{loaded.path}: has no layers that predict further tokens (NextN, MTP); leave out --nextn"
        )
    if not any(one.nextn and one.nextn.draft for one in FAMILIES if one.name == facts.architecture):
        raise ModelError(
            f"{loaded.path}: how {facts.architecture} computes further tokens (NextN, MTP) is not known, to llama.cpp "
            "neither; leave out --nextn"
        )
    if any(one.nextn and one.nextn.names for one in FAMILIES if one.name == facts.architecture):
        raise ModelError(
            f"{loaded.path}: a layer that predicts further tokens (NextN, MTP) of {facts.architecture} is two of its "
            "layers in one, which quantmill does not run; leave out --nextn"
        )
    numbers = range(facts.n_layers, facts.n_layers + count)
    layers = [_layer(loaded, source, facts, number) for number in numbers]
    loaded.model.nextn = nn.ModuleList(layer for layer, _ in layers)
    loaded.model.base_model.register_forward_hook(_behind(loaded.model.nextn), with_kwargs=True)
    tables = {number: table for number, (_, table) in zip(numbers, layers, strict=True)}
    return replace(loaded, table=_joined(loaded.table, tables, facts))


def _norm(facts: Facts) -> Norm:
    eps = facts.get("attention.layer_norm_rms_epsilon")
    if eps:
        return lambda values, weight: F.rms_norm(values, weight.shape, weight, eps)
    eps = facts.need("attention.layer_norm_epsilon")
    return lambda values, weight: F.layer_norm(values, weight.shape, weight, None, eps)


class Further(nn.Module):
    """A layer that predicts further tokens. model: of this layer alone, with the norm and the output behind it;
    with_head: whether the output is the layer's own."""

    enorm: torch.Tensor
    hnorm: torch.Tensor

    def __init__(
        self,
        eh_proj: PackedLinear,
        enorm: torch.Tensor,
        hnorm: torch.Tensor,
        norm: Norm,
        model: Any,
        with_head: bool,
    ):
        super().__init__()
        self.eh_proj, self.norm, self.model, self.with_head = eh_proj, norm, model, with_head
        self.register_buffer("enorm", enorm, persistent=False)
        self.register_buffer("hnorm", hnorm, persistent=False)

    def forward(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """ids [n_seq, n]: the tokens that follow; hidden [n_seq, n, n_hidden] → the same shape, behind its norm."""
        embedded = self.model.get_input_embeddings()(ids)
        normed = (self.norm(embedded, self.enorm), self.norm(hidden, self.hnorm))
        entering = self.eh_proj(torch.cat(normed, dim=-1))
        return self.model.base_model(inputs_embeds=entering, use_cache=False).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.get_output_embeddings()(hidden)


def _behind(layers: nn.ModuleList) -> Callable[..., None]:
    """Runs the layers one after the other: each is given the states of the one before and the tokens one further on."""

    def hook(module: nn.Module, arguments: Any, named: Mapping[str, Any], output: Any) -> None:
        hidden = output.last_hidden_state
        for further, layer in enumerate(layers, 1):
            assert isinstance(layer, Further)
            hidden = layer(named["input_ids"][:, further:], hidden[:, :-1])
            if layer.with_head:  # only so that what enters it is seen
                layer.logits(hidden)

    return hook


def _layer(
    loaded: LoadedModel, source: TensorSource, facts: Facts, number: int
) -> tuple[Further, TensorTable]:
    own = {old: new for old, new in _OWN if facts.has(f"blk.{number}.{new}")}
    inner = from_source(
        EditedSource(source, _metadata_of(source.metadata, facts, number), _edits(facts, number, own)),
        loaded.path,
        loaded.device,
        loaded.dtype,
        loaded.tokenizer,
        loaded.products,
    )
    if "token_embd.weight" not in own:
        inner.model.set_input_embeddings(loaded.model.get_input_embeddings())
    if "output.weight" not in own:
        inner.model.set_output_embeddings(loaded.model.get_output_embeddings())

    def norm(name: str) -> torch.Tensor:
        values = facts.read(f"blk.{number}.nextn.{name}.weight").ravel().astype(np.float32)
        return torch.from_numpy(values).to(loaded.device, loaded.dtype)

    name = f"blk.{number}.nextn.eh_proj.weight"
    raw, type = source.fetch(name)
    blocks, view = held_blocks(raw, _projection(name, facts))
    weight = PackedTensor(view.shape, [Piece(name, type, blocks.to(loaded.device), view, None)], loaded.dtype)
    layer = Further(
        PackedLinear(weight, None, loaded.products),
        norm("enorm"),
        norm("hnorm"),
        _norm(facts),
        inner.model,
        "output.weight" in own,
    )
    return layer, inner.table


def _projection(name: str, facts: Facts) -> View:
    n_columns, n_rows = facts.shapes[name]
    return View((name,), (n_rows, n_columns), (n_rows, n_columns))


def _edits(facts: Facts, number: int, own: Mapping[str, str]) -> Edits:
    """The tensors of the layer as those of a model of one layer, and the model's that it has no own of."""
    names: dict[str, str | None] = {}
    for name in facts.shapes:
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer is None:
            names[name] = None if name in own else name
        elif int(layer[1]) != number or ".nextn." in name:
            names[name] = None
        else:
            names[name] = f"blk.0.{name[layer.end() :]}"
    return Edits(names | {f"blk.{number}.{new}": old for old, new in own.items()}, {}, {})


def _metadata_of(metadata: Metadata, facts: Facts, number: int) -> Metadata:
    """Numbers for each layer: that of this one alone."""
    n_layers = facts.need("block_count")
    for key, found in metadata.items():
        short = key.removeprefix(f"{facts.architecture}.")
        if short == key:
            continue
        if found.element_type is not None and len(found.value) == n_layers:
            metadata = metadata.replace(key, MetaValue(found.type, [found.value[number]], found.element_type))
        # As llama.cpp: its RoPE is that of layers with a window (of Cohere's, no other has any), its window is none.
        elif short == "attention.sliding_window_pattern" and found.element_type is not None:
            metadata = metadata.replace(key, MetaValue(found.type, [True], found.element_type))
        elif short == "attention.sliding_window":
            metadata = metadata.replace(key, MetaValue(found.type, facts.need("context_length")))
        elif short in _OF_ONE:
            metadata = metadata.replace(key, MetaValue(found.type, _OF_ONE[short]))
    return metadata


def _joined(table: TensorTable, further: Mapping[int, TensorTable], facts: Facts) -> TensorTable:
    """The table with the matrices of the further layers, whose tables come by their numbers."""
    views, uses, shapes = dict(table.views), dict(table.uses), dict(table.shapes)
    for place, (number, inner) in enumerate(further.items()):
        outside = {name: f"blk.{number}.{name[6:]}" for name in inner.views if name.startswith("blk.0.")} | {
            "output.weight": f"blk.{number}.nextn.shared_head_head.weight"
        }
        outside = {old: new for old, new in outside.items() if new in facts.shapes}
        views |= {new: inner.views[old] for old, new in outside.items()}
        for name, found in inner.uses.items():
            if found[0].name in outside:
                uses[f"nextn.{place}.model.{name}"] = tuple(
                    Use(outside[use.name], use.matrix) for use in found
                )
                shapes[f"nextn.{place}.model.{name}"] = inner.shapes[name]
        name = f"blk.{number}.nextn.eh_proj.weight"
        views[name] = _projection(name, facts)
        uses[f"nextn.{place}.eh_proj.weight"] = (Use(name, None),)
        shapes[f"nextn.{place}.eh_proj.weight"] = views[name].shape
    return replace(table, views=views, uses=uses, shapes=shapes)
