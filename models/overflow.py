"""Which part of a model first puts out what is not finite, and whether its file holds such numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from quantmill.gguf_io.tensors import TensorSource
from quantmill.models.packed import PackedEmbedding, PackedExperts, PackedLinear
from quantmill.qkernels.checks import require_finite_scales
from quantmill.qkernels.plain import all_finite
from quantmill.qkernels.types import TYPES, TooLargeError

_READ_BYTES = 64 << 20


def damaged(source: TensorSource | None) -> str | None:
    """In words, which tensor of a model's file holds NaN or infinity; None where none does, or there is no file. Reads
    all of it: for what has failed already."""
    if source is None:
        return None
    for spec in source.specs():
        type = TYPES.get(spec.type)
        if type is None:
            continue
        step = max(1, _READ_BYTES // spec.row_bytes)
        for first in range(0, spec.n_rows, step):
            raw = source.read(spec.name, first, min(step, spec.n_rows - first))
            try:
                if type.family == "plain":
                    sound = all_finite(raw, type)
                else:
                    require_finite_scales(raw, type)
                    sound = True
            except TooLargeError:
                sound = False
            if not sound:
                return f"{spec.name} holds values that are not finite: the model is damaged, convert or fetch it again"
        source.release(spec.name)
    return None


def first_bad_module(model: Any, name_map: Mapping[str, tuple[str, ...]], ids: torch.Tensor) -> str:
    """In words, for ids [n_seq, n_tokens] that it happens with. name_map: of LoadedModel."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    # Only what has weights of its own or no parts: a container is bad when its last part is.
    leaves = [(n, m) for n, m in model.named_modules() if _is_leaf(m)]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "every layer's output is finite, only the final logits overflow"
    inside = [names for name, names in name_map.items() if name.startswith(f"{found[0]}.")]
    tensors = [name for names in inside for name in names]
    return f"the first bad output is that of {', '.join(tensors) or found[0]}"


def _is_leaf(module: nn.Module) -> bool:
    parts = list(module.children())
    has_weights = any(True for _ in module.parameters(recurse=False))
    packed = isinstance(module, PackedLinear | PackedEmbedding) or any(
        isinstance(p, PackedExperts) for p in parts
    )
    return packed or has_weights or not parts
