"""New values for tensors of a model that is pruned: merged experts, refitted matrices, in types that can hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from quantmill.calibrate.prune_heal import heal
from quantmill.calibrate.prune_merge import merged
from quantmill.gguf_io import TensorSource, open_source
from quantmill.gguf_io.edited import Stored
from quantmill.jobs.edits import Edits
from quantmill.jobs.errors import JobError
from quantmill.jobs.prune_request import Refitted
from quantmill.jobs.prune_session import Session
from quantmill.models.walk import Walk
from quantmill.qkernels import TYPES, quantize, to_float32

_LAYER = re.compile(r"blk\.(\d+)\.")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PARTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps")


def stored(name: str, values: torch.Tensor, type: str) -> Stored:
    """values [n_mat, n_rows, n_cols] f32 in a tensor's own type where that is a float, else in F32.

    Raises JobError for values that the type cannot hold.
    """
    type = type if type in _DTYPES else "F32"
    rows = values.detach().cpu().flatten(0, -2).to(_DTYPES[type]).contiguous()
    if not bool(rows.isfinite().all()):
        raise JobError(
            f"{name}: refitted values do not fit into {type}; leave the model as it is (--no-heal)"
        )
    return Stored(type, rows.view(torch.uint8).numpy().reshape(len(rows), -1))


def in_own_types(model: str, edits: Edits) -> Edits:
    """What was rewritten of a quantized file, in the types that the file has; F32 where a type wants importance."""
    source = open_source(model)
    types = {spec.name: spec.type for spec in source.specs()}
    source.close()
    replaced = dict(edits.replaced)
    for name, found in edits.replaced.items():
        type = types[name]
        if found.type != type and TYPES[type].importance != "required":
            replaced[name] = Stored(type, quantize(found.rows.view(np.float32), type))
    return Edits(edits.experts, replaced) if edits.replaced else edits


def widened(model: str, edits: Edits) -> dict[str, str]:
    """Tensors that were rewritten and are F32 now, for their type wants importance → that type."""
    source = open_source(model)
    types = {spec.name: spec.type for spec in source.specs()}
    source.close()
    return {
        name: types[name]
        for name, found in edits.replaced.items()
        if name in types and found.type == "F32" and TYPES[types[name]].importance == "required"
    }


def merged_experts(session: Session, edits: Edits) -> Edits:
    """The experts that stay with those that leave averaged into them. Raises JobError for experts that have biases."""
    source, influence = session.source, session.influence
    specs = {spec.name: spec for spec in source.specs()}
    replaced = dict(edits.replaced)
    for layer, kept in edits.experts.items():
        names = [f"blk.{layer}.{part}.weight" for part in _PARTS if f"blk.{layer}.{part}.weight" in specs]
        _require_plain(specs, layer)
        if layer not in influence.saliency:  # for predicting several tokens: no text has passed it
            continue
        strength = influence.saliency[layer] * influence.routed[layer]
        parts = {name: _by_neuron(name, _read(source, name)) for name in names}
        router = _read(source, f"blk.{layer}.ffn_gate_inp.weight")[0]
        for name, values in merged(parts, router, kept, strength.tolist()).items():
            back = torch.from_numpy(np.ascontiguousarray(_by_neuron(name, values)))
            replaced[name] = stored(name, back, specs[name].type)
    return Edits(edits.experts, replaced)


def _require_plain(specs: Mapping[str, object], layer: int) -> None:
    for name in specs:
        if name.startswith(f"blk.{layer}.ffn_") and "_exps." in name and not name.endswith(".weight"):
            raise JobError(f"{name}: experts with biases or factors cannot be merged; leave out --merge")
    if f"blk.{layer}.ffn_gate_up_exps.weight" in specs:
        raise JobError(
            f"blk.{layer}.ffn_gate_up_exps.weight: fused experts cannot be merged; leave out --merge"
        )


def _read(source: TensorSource, name: str) -> np.ndarray:
    """f32 [n_mat, n_rows, n_cols]."""
    spec = next(spec for spec in source.specs() if spec.name == name)
    values = to_float32(np.ascontiguousarray(source.read(name)), spec.type)
    return values.reshape(-1, spec.shape[1], spec.n_cols)


def _by_neuron(name: str, values: np.ndarray) -> np.ndarray:
    """[n_experts, n_ff, n_hidden]: of ffn_down turned, both ways."""
    return values.swapaxes(1, 2) if ".ffn_down_exps." in name else values


def healed(session: Session, edits: Edits, layers: tuple[int, ...]) -> tuple[Edits, tuple[Refitted, ...]]:
    """Edits with what was refitted, and how far that went, matrix by matrix."""
    original, pruned = session.loaded, session.pruned(edits, layers)
    types = {spec.name: spec.type for spec in session.source.specs()}
    replaced, rows = dict(edits.replaced), []
    walks = [Walk(model, session.chunks.trained, session.workers.map, False) for model in (original, pruned)]
    kept = [layer for layer in range(len(walks[0].modules)) if layer not in layers]
    first = _first(edits, layers)
    session.watcher.began("refitting", len(kept) - first, "layers")
    done = first
    for found in heal(walks[0], walks[1], kept, first):
        new = int(_layer_of(found.name))
        session.watcher.progressed(new - done, f"{found.name}: {found.before:.4f} -> {found.after:.4f}")
        done = new
        name = _LAYER.sub(f"blk.{kept[new]}.", found.name)
        replaced[name] = stored(name, found.values, types[name])
        rows.append(Refitted(name, found.before, found.after))
    return Edits(edits.experts, replaced), tuple(rows)


def _layer_of(name: str) -> str:
    match = _LAYER.match(name)
    assert match is not None, name
    return match[1]


def _first(edits: Edits, layers: Sequence[int]) -> int:
    """The first layer of the pruned model that can make something good: the one before a cut, or with fewer experts."""
    firsts: Iterator[int] = iter([*([max(0, layers[0] - 1)] if layers else []), *edits.experts])
    return min(firsts)
