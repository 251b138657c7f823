"""A loaded model made trainable: its packed modules replaced by ones that pass gradients, and collect their own.

The gradients of scales do not go through autograd, which would want a tensor of all experts' scales for every expert:
a product's backward adds them to its pieces (scales.py). A matrix is decoded where it is multiplied, forward and again
backward, and forgotten there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from quantmill.calibrate.attention import share_out_attention
from quantmill.calibrate.scales import ScaledPiece, Way
from quantmill.calibrate.tensors import ScaledTensor
from quantmill.models.packed import PackedEmbedding, PackedExperts, PackedLinear
from quantmill.models.workers import Workers, tiles

TILE_TOKENS = 128  # rows of a product computed at a time


class _Product(torch.autograd.Function):
    """inputs [n, n_cols] times matrix `index` transposed: [n, n_rows] in the inputs' dtype."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: ScaledTensor, index: int) -> torch.Tensor:
        way = weight.way
        ctx.weight, ctx.index = weight, index
        narrow = whole_tiles(inputs.to(way.dtype))
        ctx.save_for_backward(narrow)  # the matrix is decoded again
        out = torch.empty(len(inputs), weight.shape[-2], dtype=inputs.dtype, device=inputs.device)
        parts = way.replay.of(lambda: weight.product(index, narrow, out))
        if way.replay.again:
            for rows, part in zip(weight.tiles, parts, strict=True):
                out[:, rows] = part[: len(out)]
        return out

    @staticmethod
    def backward(ctx: Any, outputs: torch.Tensor) -> Any:  # type: ignore[override]
        (inputs,) = ctx.saved_tensors
        narrow = whole_tiles(outputs.to(inputs.dtype))
        back = ctx.weight.product_back(ctx.index, narrow, inputs, len(outputs))
        return back[: len(outputs)].to(outputs.dtype), None, None


def product(left: torch.Tensor, right: torch.Tensor, workers: Workers) -> torch.Tensor:
    """left [n, k] @ right [k, m]: [n, m], on a CPU a tile of rows at a time."""
    n = len(left)
    if left.device.type != "cpu":
        return left @ right
    left = whole_tiles(left)
    out = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype, device=left.device)

    def one(rows: slice) -> None:
        torch.mm(left[rows], right, out=out[rows])

    workers.map(one, tiles(len(left), TILE_TOKENS, 32))
    return out[:n]


def whole_tiles(rows: torch.Tensor) -> torch.Tensor:
    """rows [n, k] with rows of zeros behind, up to a multiple of 32.

    An expert gets another number of tokens every time, and oneDNN compiles and keeps a kernel for every shape.
    """
    missing = -len(rows) % 32
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


class _Lookup(torch.autograd.Function):
    """Rows of an embedding. `anchor` requires a gradient, so that everything after it does too."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, ids: torch.Tensor, weight: ScaledTensor) -> torch.Tensor:
        ctx.weight, ctx.ids = weight, ids
        if weight.plain:
            return weight.pieces[0].decoded(0, ids, anchor.dtype)
        return weight.matrix(0)[ids].to(anchor.dtype)

    @staticmethod
    def backward(ctx: Any, outputs: torch.Tensor) -> Any:  # type: ignore[override]
        if ctx.weight.moves and ctx.weight.plain:
            piece = ctx.weight.pieces[0]
            rows, place = torch.unique(ctx.ids, return_inverse=True)
            sums = outputs.new_zeros(len(rows), outputs.shape[-1]).index_add_(0, place, outputs)
            heard = piece.heard(0, rows, piece.decoded(0, rows, sums.dtype), sums)
            piece.add(ctx.weight.way.strands.number, 0, rows, [heard])
        return None, None, None


class _GroupedProduct(torch.autograd.Function):
    """inputs [n, n_groups, n_cols], each times its share of the rows: [n, n_groups, n_rows / n_groups]."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: ScaledTensor) -> torch.Tensor:
        ctx.weight = weight
        narrow = inputs.to(weight.way.dtype)
        ctx.save_for_backward(narrow)
        return torch.einsum("ngi,goi->ngo", narrow, _by_group(weight.matrix(0), narrow)).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, outputs: torch.Tensor) -> Any:  # type: ignore[override]
        (inputs,) = ctx.saved_tensors
        matrix, narrow = ctx.weight.matrix(0), outputs.to(inputs.dtype)
        if ctx.weight.moves:
            whole = torch.einsum("ngo,ngi->goi", narrow, inputs).flatten(0, 1)
            ctx.weight.add_gradient_of(0, matrix, lambda rows: whole[rows], len(inputs))
        return torch.einsum("ngo,goi->ngi", narrow, _by_group(matrix, inputs)).to(outputs.dtype), None


def _by_group(matrix: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return matrix.unflatten(0, (inputs.shape[1], -1))


class ScaledLinear(nn.Module):
    """Drops in for PackedLinear, with the same groups."""

    def __init__(self, weight: ScaledTensor, bias: torch.Tensor | None, groups: int = 1) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight, self.groups = weight, groups
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.groups > 1:
            out = _GroupedProduct.apply(x.reshape(-1, self.groups, self.in_features), self.weight)
            return out.view(*x.shape[:-1], -1)
        out = _Product.apply(x.reshape(-1, self.in_features), self.weight, 0)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


class ScaledEmbedding(nn.Module):
    """Drops in for PackedEmbedding."""

    def __init__(self, weight: ScaledTensor, dtype: torch.dtype, scale: float) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight, self.scale = weight, scale
        self.anchor = torch.zeros((), dtype=dtype, requires_grad=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = _Lookup.apply(self.anchor, ids.reshape(-1), self.weight)
        return rows.view(*ids.shape, self.embedding_dim) * self.scale


class ScaledExperts(nn.Module):
    """Drops in for PackedExperts: indexed with an expert it gives what stands for that expert's matrix."""

    def __init__(self, weight: ScaledTensor) -> None:
        super().__init__()
        self.weight = weight
        self.shape = weight.shape

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, expert: int | torch.Tensor) -> ExpertMatrix:
        return ExpertMatrix(self.weight, int(expert))


class ExpertMatrix:
    """An expert's matrix that is decoded where it is multiplied: by F.linear, or behind `@`."""

    def __init__(self, weight: ScaledTensor, index: int) -> None:
        self.weight, self.index = weight, index

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        inputs, matrix, *rest = args
        assert isinstance(matrix, ExpertMatrix), function
        if function is nn.functional.linear:
            out = _Product.apply(inputs, matrix.weight, matrix.index)
            bias = rest[0] if rest else (kwargs or {}).get("bias")
            return out if bias is None else out + bias
        assert function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), function
        return _TransposedProduct.apply(inputs, matrix.weight, matrix.index)


class _TransposedProduct(torch.autograd.Function):
    """inputs [n, n_rows] times matrix `index` as it stands: [n, n_cols]."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: ScaledTensor, index: int) -> torch.Tensor:
        way = weight.way
        ctx.weight, ctx.index = weight, index
        narrow = inputs.to(way.dtype)
        ctx.save_for_backward(narrow)
        (out,) = way.replay.of(lambda: (product(narrow, weight.matrix(index), way.workers),))
        return out.to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, outputs: torch.Tensor) -> Any:  # type: ignore[override]
        (inputs,) = ctx.saved_tensors
        matrix = ctx.weight.matrix(ctx.index)
        narrow = outputs.to(inputs.dtype)
        if ctx.weight.moves:
            parts = whole_tiles(inputs), whole_tiles(narrow)
            ctx.weight.add_product_gradient(ctx.index, matrix, *parts, len(inputs))
        return product(narrow, matrix.T, ctx.weight.way.workers).to(outputs.dtype), None, None


def make_trainable(model: nn.Module, way: Way) -> dict[str, ScaledPiece]:
    """Replace the packed modules of a loaded model in place; its pieces by the GGUF's names."""
    pieces: dict[str, ScaledPiece] = {}
    tensors: dict[int, ScaledTensor] = {}  # a tied head has the embedding's

    def scaled(packed: Any) -> ScaledTensor:
        if id(packed) not in tensors:
            tensors[id(packed)] = ScaledTensor(packed, pieces, way)
        return tensors[id(packed)]

    for name, module in list(model.named_modules()):
        new: nn.Module
        if isinstance(module, PackedLinear):
            new = ScaledLinear(scaled(module.weight), module.bias, module.groups)
        elif isinstance(module, PackedEmbedding):
            new = ScaledEmbedding(scaled(module.weight), module.dtype, module.scale)
        elif isinstance(module, PackedExperts):
            new = ScaledExperts(scaled(module.weight))
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)
    share_out_attention(model, way)
    return pieces
