"""Scaled dot-product attention a few heads at a time, shared out among workers; exact float32 scores.

transformers calls it by a registered name; how it is computed stands in the model's configuration.
"""

from __future__ import annotations

from typing import Any

import torch

from quantmill.calibrate.scales import Way

NAME = "quantmill_by_heads"
_SETTING = "quantmill_attention"


def share_out_attention(model: Any, way: Way) -> None:
    """Let a model of transformers compute attention here, where it would have called torch's own ("sdpa") on a CPU."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    if model.config._attn_implementation != "sdpa":
        return  # soft caps and sinks, which its class computes itself
    if next(model.parameters()).device.type != "cpu":
        return  # one call for all heads serves a GPU better
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            setattr(config, _SETTING, way)


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
    way: Way = getattr(module.config, _SETTING)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Attention.apply(query, key, value, attention_mask, scale, way), None


class _Attention(torch.autograd.Function):
    """Attention of every head; the backward computes the scores again, so that only inputs and output are kept.

    Forward in float32: scores in bfloat16 cost 1 % of a 4-bit file's divergence. Most of the backward in `way.dtype`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        way: Way,
    ) -> torch.Tensor:
        def compute() -> tuple[torch.Tensor]:
            n_seq, n_heads, n, _ = query.shape
            out = torch.empty(n_seq, n, n_heads, value.shape[-1], dtype=query.dtype, device=query.device)

            def one(part: _Part) -> None:
                found = part.weights() @ part.v
                out[part.seq, part.rows, part.heads] = part.by_heads(found).transpose(0, 1)

            way.workers.map(one, _parts(query, key, value, mask, scale))
            return (out,)

        (out,) = way.replay.of(compute)
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.scale, ctx.way = scale, way
        return out

    @staticmethod
    def backward(ctx: Any, outputs: torch.Tensor) -> Any:  # type: ignore[override]
        query, key, value, mask, out = ctx.saved_tensors
        parts = _parts(query, key, value, mask, ctx.scale)
        back_q, back_k, back_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)

        def one(part: _Part) -> tuple[torch.Tensor, torch.Tensor]:
            place = part.seq, part.rows, part.heads
            own, shared_k, shared_v = part.back(out[place], outputs[place], ctx.way.dtype)
            back_q[part.seq, part.heads, part.rows] = part.by_heads(own)
            return shared_k, shared_v

        for part, (shared_k, shared_v) in zip(parts, ctx.way.workers.map(one, parts), strict=True):
            back_k[part.seq, part.shared, : part.seen] += shared_k
            back_v[part.seq, part.shared, : part.seen] += shared_v
        return back_q, back_k, back_v, None, None, None


class _Part:
    """Some queries of the heads of one sequence that share a key and a value, one head's after the other's.

    q, times the scale, [n_heads · n_rows, d]; k, v [n_seen, d]: of all keys that a query may look at; without a mask
    none is later than the query.
    """

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        place: tuple[int, int, slice],
    ) -> None:
        self.seq, self.shared, self.rows = place
        n_shared = query.shape[1] // key.shape[1]
        self.heads = slice(self.shared * n_shared, (self.shared + 1) * n_shared)
        self.mask = None
        self.seen = self.rows.stop if mask is None else key.shape[2]
        if mask is not None:
            own = mask[min(self.seq, len(mask) - 1), :, self.rows]
            self.mask = own if len(own) == 1 else own[self.heads]
        self.scale = scale
        self.q = query[self.seq, self.heads, self.rows].flatten(0, 1) * scale  # once, not every score
        self.k, self.v = (part[self.seq, self.shared, : self.seen] for part in (key, value))

    def by_heads(self, values: torch.Tensor) -> torch.Tensor:
        """[n_heads · n_rows, …] → [n_heads, n_rows, …]."""
        return values.unflatten(0, (self.heads.stop - self.heads.start, -1))

    def weights(self) -> torch.Tensor:
        """What each query gives to each key, [n_heads · n_rows, n_seen] f32."""
        scores = self.q @ self.k.T
        by_heads = self.by_heads(scores)
        if self.mask is None:
            n = self.rows.stop - self.rows.start
            by_heads[..., self.rows.start :] += torch.full((n, n), -torch.inf, device=scores.device).triu_(1)
        elif self.mask.dtype == torch.bool:
            by_heads.masked_fill_(~self.mask, -torch.inf)
        else:
            by_heads += self.mask
        return torch.softmax(scores, -1)

    def back(
        self, out: torch.Tensor, outputs: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of q, k and v from the output and its gradient, [n_rows, n_heads, d]."""
        outputs = outputs.transpose(0, 1)
        common = torch.linalg.vecdot(outputs, out.transpose(0, 1)).reshape(-1, 1)
        back = outputs.flatten(0, 1)
        weights = self.weights()
        back_v = weights.to(dtype).T @ back.to(dtype)
        scores = (back @ self.v.T).sub_(common).mul_(weights).to(dtype)
        return scores @ (self.k * self.scale).to(dtype), scores.T @ self.q.to(dtype), back_v


def _parts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> list[_Part]:
    """All the work there is, in parts whose scores fit into a cache."""
    n_seq, n_shared, n, _ = key.shape
    step = max(32, min(128, 512 * n_shared // query.shape[1]))
    slabs = [slice(first, min(first + step, n)) for first in range(0, n, step)]
    places = [(seq, head, rows) for seq in range(n_seq) for head in range(n_shared) for rows in slabs]
    return [_Part(query, key, value, mask, scale, place) for place in places]
