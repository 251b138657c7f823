"""A stack of experts that shows what enters each expert's matrices.

transformers 5 keeps experts fused (`gate_up_proj`, `down_proj` [n_experts, …]) and lets the computation be
exchanged (`use_experts_implementation`); the decorator leaves on the module how its weights lie. This is one
more such implementation, in plain torch: tokens are sorted by expert, and each expert sees its rows at once.
Weights are indexed one expert at a time, so stacks that are decoded when used work too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

See = Callable[[int, int, torch.Tensor], None]  # (which input, expert, rows [n, n_cols])
# (expert, what it puts out [n, n_hidden], its places in top_k_index.flatten() [n])
Made = Callable[[int, torch.Tensor, torch.Tensor], None]
FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate", "num_experts")


def is_recordable(module: nn.Module) -> bool:
    """Whether transformers describes this module's weights in the way recording_forward reads."""
    return all(hasattr(module, flag) for flag in FLAGS)


def recording_forward(
    module: Any,
    see: See,
    inputs: tuple[int, int],
    route_all: bool,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    made: Made | None = None,
) -> torch.Tensor:
    """hidden_states [n_tokens, n_hidden], top_k_index and top_k_weights [n_tokens, k] → [n_tokens, n_hidden].

    see() is told what enters the up (and gate) and the down matrix of every expert that is routed to; with
    route_all of every expert, as if all tokens went there. The result is that of the routing either way; made() is told
    what each expert puts out for the tokens that are routed to it.
    """
    n_tokens, k = top_k_index.shape
    order, ends = by_expert(top_k_index, module.num_experts)
    # every token once for each of its experts, expert after expert
    sorted_states = hidden_states[order // k]
    parts = []
    begin = 0
    for expert, end in enumerate(ends[: module.num_experts]):
        if route_all:
            inner = entering_down(module, expert, hidden_states)
            see(inputs[0], expert, hidden_states)
            see(inputs[1], expert, inner)
            inner = inner[order[begin:end] // k]
        elif end > begin:
            x = sorted_states[begin:end]
            inner = entering_down(module, expert, x)
            see(inputs[0], expert, x)
            see(inputs[1], expert, inner)
        if end > begin:
            parts.append(_down(module, expert, inner))
            if made is not None:
                made(expert, parts[-1], order[begin:end])
        begin = end
    weighted = torch.cat(parts) * top_k_weights.reshape(-1, 1)[order]
    slots = torch.empty(n_tokens * k, weighted.shape[-1], dtype=hidden_states.dtype, device=order.device)
    slots[order] = weighted.to(slots.dtype)
    return slots.view(n_tokens, k, -1).sum(dim=1)


def by_expert(top_k_index: torch.Tensor, n_experts: int) -> tuple[torch.Tensor, list[int]]:
    """top_k_index [n_tokens, k] → its n_tokens * k places expert after expert, and where each expert's end."""
    chosen = top_k_index.reshape(-1)
    ends = torch.bincount(chosen, minlength=n_experts).cumsum(0).tolist()
    return torch.argsort(chosen, stable=True), ends


def entering_down(module: Any, expert: int | list[int], x: torch.Tensor) -> torch.Tensor:
    """What enters the down matrix: the gated (or only activated) intermediate state.

    x [n, n_hidden] of one expert, or [n_experts, n, n_hidden] of several, where the stack gives several at a time.
    """
    part = "gate_up_proj" if module.has_gate else "up_proj"
    out = _product(module, part, expert, x)
    return module._apply_gate(out) if module.has_gate else module.act_fn(out)


def _down(module: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    out = _product(module, "down_proj", expert, x)
    return module.post_expert_norm(out) if module.has_post_expert_norm else out


def _product(module: Any, part: str, expert: int | list[int], x: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, part)[expert]
    bias = getattr(module, f"{part}_bias")[expert] if module.has_bias else None
    if weight.ndim == 2:
        return F.linear(x, weight.T if module.is_transposed else weight, bias)
    out = x @ (weight if module.is_transposed else weight.mT)
    return out if bias is None else out + bias[:, None]
