"""Scaled dot-product attention head by head, the heads shared out among workers; its products in a dtype of their own.

transformers calls it by a registered name; which workers and which dtype stands in the model's configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from quantmill.calibrate.workers import Workers

NAME = "quantmill_by_heads"
_SETTING = "quantmill_attention"


@dataclass(frozen=True)
class _Setting:
    dtype: torch.dtype
    workers: Workers


def share_out_attention(model: Any, dtype: torch.dtype, workers: Workers) -> None:
    """Let a model of transformers compute attention here, where it would have called torch's own ("sdpa")."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    if model.config._attn_implementation != "sdpa":
        return  # soft caps and sinks, which its class computes itself
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            setattr(config, _SETTING, _Setting(dtype, workers))


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [n_seq, n_heads, n, d], key and value [n_seq, n_kv_heads, n, d] → [n_seq, n, n_heads, d]."""
    assert softcap is None
    assert not others.get("dropout")
    setting: _Setting = getattr(module.config, _SETTING)
    out = _Attention.apply(query, key, value, attention_mask, scaling, setting)
    return out.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    """Attention of every head; the backward computes each head again, so that only the inputs are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        setting: _Setting,
    ) -> torch.Tensor:
        narrow = [tensor.to(setting.dtype) for tensor in (query, key, value)]
        ctx.save_for_backward(*narrow, mask)
        ctx.scaling, ctx.setting, ctx.given = scaling, setting, query.dtype
        heads = setting.workers.map(
            lambda head: _one(*_of_head(narrow, head), mask, scaling), range(query.shape[1])
        )
        return torch.cat(heads, 1).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, outputs: torch.Tensor) -> Any:  # type: ignore[override]
        *narrow, mask = ctx.saved_tensors
        back = outputs.to(narrow[0].dtype)

        def one(head: int) -> tuple[torch.Tensor, ...]:
            with torch.enable_grad():
                q, k, v = (part.detach().requires_grad_() for part in _of_head(narrow, head))
                out = _one(q, k, v, mask, ctx.scaling)
            return torch.autograd.grad(out, (q, k, v), back[:, head : head + 1])

        found = ctx.setting.workers.map(one, range(narrow[0].shape[1]))
        query = torch.cat([parts[0] for parts in found], 1).to(ctx.given)
        shared = len(found) // narrow[1].shape[1]  # query heads that share a key and a value
        key, value = (
            torch.stack([parts[i].to(ctx.given) for parts in found], 1)
            .unflatten(1, (-1, shared))
            .sum(2)
            .squeeze(2)
            for i in (1, 2)
        )
        return query, key, value, None, None, None


def _of_head(tensors: Sequence[torch.Tensor], head: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of one query head, [n_seq, 1, n, d]."""
    query, key, value = tensors
    shared = head * key.shape[1] // query.shape[1]
    return query[:, head : head + 1], key[:, shared : shared + 1], value[:, shared : shared + 1]


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scaling)
