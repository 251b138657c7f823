"""Causal attention by short products (qkernels.products), wherever a model's code asks torch for attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from quantmill.qkernels import products


class ShortAttention(TorchFunctionMode):
    """Inside, this thread's scaled_dot_product_attention is qkernels.products.attended where that can do it: causal
    without another mask, all tokens at once, whole blocks; else it is torch's. kind: of products."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            found = _attended(self.kind, *args, **named)
            if found is not None:
                return found
        return func(*args, **named)


def with_short_attention(forward: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """A model's forward, or a layer, with ShortAttention."""

    @functools.wraps(forward)
    def run(*inputs: Any, **named: Any) -> Any:
        with ShortAttention(kind):
            return forward(*inputs, **named)

    return run


def _attended(
    kind: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """[n_seq, n_heads, n_tokens, width], or None where it cannot be done here."""
    given = (query, key, value)
    if not is_causal or attn_mask is not None or dropout_p or any(x.requires_grad for x in given):
        return None
    if any(x.device.type != "cpu" or x.dtype != torch.float32 or x.stride(-1) != 1 for x in given):
        return None
    n_seq, n_heads, n_tokens, width = query.shape
    if key.shape != value.shape or key.shape[2:] != query.shape[2:] or n_heads % key.shape[1]:
        return None
    if n_tokens % products.BLOCK or width % products.BLOCK:
        return None
    out = torch.empty(n_seq, n_tokens, n_heads, width).transpose(1, 2)
    factor = width**-0.5 if scale is None else scale
    for one in zip(*(x.numpy() for x in given), out.numpy(), strict=True):
        q, k, v, into = one
        products.attended(q, k, v, factor, into, kind)
    return out
