"""Torch modules whose weights stay GGUF blocks and are decoded when they are used.

A model that fits quantized runs quantized: a linear layer decodes a slab of its rows, multiplies and forgets
it; an embedding decodes only the rows it is asked for; a stack of experts decodes the expert it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from quantmill.gguf_io.convert.names import View
from quantmill.qkernels import dequantize, products

SLAB = 1 << 24  # weights decoded at a time by a linear layer: 64 MiB of float32
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in PLAIN.items()}


def decode(
    blocks: torch.Tensor, type: str, dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """blocks [..., row_bytes] u8 -> [..., n_cols] dtype, on the blocks' device; in the memory `out` if it is given."""
    if type in PLAIN and out is None:
        return blocks.view(PLAIN[type]).to(dtype)
    return dequantize(blocks, type, to=_NAMES[dtype], out=out)


class Piece(nn.Module):
    """One GGUF tensor: blocks [n_matrices, n_rows, row_bytes] u8 and the view that made it from its origin.

    `matrix`: the Hugging Face tensor is this one of the GGUF's matrices; None: it holds them all. `factors`: what each
    matrix is multiplied with (NVFP4's `.scale`).
    """

    blocks: torch.Tensor

    def __init__(
        self,
        name: str,
        ggml_type: str,
        blocks: torch.Tensor,
        view: View,
        matrix: int | None,
        factors: tuple[float, ...] | None = None,
    ):
        super().__init__()
        self.name, self.ggml_type, self.view, self.matrix = name, ggml_type, view, matrix
        self.factors = factors
        self.register_buffer("blocks", blocks, persistent=False)

    def decoded(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Matrix `index` of the Hugging Face tensor's share: [n_rows, n_cols]."""
        return self._multiplied(index, decode(self.blocks[self._which(index)], self.ggml_type, dtype), None)

    def rows(
        self, rows: slice | torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Some rows of the only matrix."""
        return self._multiplied(0, decode(self.only_matrix[rows], self.ggml_type, dtype, out), out)

    @property
    def only_matrix(self) -> torch.Tensor:
        """Its blocks [n_rows, row_bytes]."""
        return self.blocks[self._which(0)]

    def _multiplied(self, index: int, values: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return (
            values if self.factors is None else torch.mul(values, self.factors[self._which(index)], out=out)
        )

    def _which(self, index: int) -> int:
        return index if self.matrix is None else self.matrix


class PackedTensor(nn.Module):
    """A Hugging Face tensor of `shape` that is stored as the GGUF tensors `pieces`. dtype: what is computed with."""

    def __init__(self, shape: Sequence[int], pieces: Sequence[Piece], dtype: torch.dtype):
        super().__init__()
        self.shape, self.dtype = torch.Size(shape), dtype
        self.pieces = tuple(pieces)
        for piece in pieces:
            self.add_module(piece.name.replace(".", "/"), piece)
        # The rows of a plain tensor can be decoded a few at a time; others are put together first.
        self.plain = len(pieces) == 1 and pieces[0].view.plain and len(shape) == 2

    @property
    def device(self) -> torch.device:
        return self.pieces[0].blocks.device

    def matrix(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Matrix `index` of the last two dimensions, decoded and put back into Hugging Face order."""
        if self.plain:
            return self.pieces[0].decoded(index, dtype)
        out = torch.empty(self.shape[-2:], dtype=dtype, device=self.device)
        for piece in self.pieces:
            # One source matrix may have been cut into several (heads of a latent attention).
            parts = out.view(-1, *piece.view.source_matrix)
            for m, part in enumerate(parts):
                piece.view.put(part, piece.decoded(index * len(parts) + m, dtype))
        return out

    def slabs(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The rows of a 2-D tensor, decoded a slab at a time; a slab's memory may be the next one's."""
        if not self.plain:
            yield self.matrix(0, dtype)
            return
        n_rows, n_cols = self.shape
        step = min(n_rows, max(1, SLAB // n_cols))
        stored_so = PLAIN.get(self.pieces[0].ggml_type) == dtype
        room = None if stored_so else torch.empty((step, n_cols), dtype=dtype, device=self.device)
        for first in range(0, n_rows, step):
            rows = slice(first, min(first + step, n_rows))
            yield self.pieces[0].rows(rows, dtype, None if room is None else room[: rows.stop - first])

    def stored(self) -> tuple[torch.Tensor, str] | None:
        """The blocks u8 [n_rows, row_bytes] of a 2-D tensor and their type, where they are all that it is."""
        piece = self.pieces[0]
        if not self.plain or piece.factors is not None:
            return None
        return piece.only_matrix, piece.ggml_type

    def rows(self, index: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Decoded rows [n, n_cols] of a 2-D tensor."""
        if not self.plain:
            return self.matrix(0, dtype)[index]
        return self.pieces[0].rows(index, dtype)


def is_grouped(module: object) -> bool:
    """Whether groups of a matrix' rows have inputs of their own: transformers' module, or the one in its place."""
    return getattr(module, "n_groups", 1) > 1 or (isinstance(module, PackedLinear) and module.groups > 1)


def by_group(x: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """x [..., groups, n_cols], weight [n_rows, n_cols] → [..., groups, n_rows / groups]."""
    return torch.einsum("...gi,goi->...go", x, weight.view(groups, -1, weight.shape[-1]))


class PackedLinear(nn.Module):
    """x [..., in_features] -> [..., out_features]; drops in for nn.Linear.

    kind: of qkernels.products, by which is multiplied where rows are whole blocks. groups: so many parts of the rows
    have an input of their own, x [..., groups, in_features] →
    [..., groups, out_features / groups] (DeepSeek V4's output).
    """

    bias: torch.Tensor | None

    def __init__(
        self, weight: PackedTensor, bias: torch.Tensor | None, kind: str | None = None, groups: int = 1
    ):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.groups = groups
        self.weight = weight
        self.kind = None if self.in_features % products.BLOCK else kind
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.groups > 1:
            return by_group(x, self.weight.matrix(0, x.dtype), self.groups)
        rows = x.reshape(-1, self.in_features)
        out = rows.new_empty(rows.shape[0], self.out_features)
        if self.kind is None:
            self._multiply(rows, out)
        else:
            self._multiply_short(rows, out, self.kind)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        first = 0
        for slab in self.weight.slabs(rows.dtype):
            torch.mm(rows, slab.T, out=out[:, first : first + slab.shape[0]])
            first += slab.shape[0]

    def _multiply_short(self, rows: torch.Tensor, out: torch.Tensor, kind: str) -> None:
        entered, into, stored = products.entered(rows.numpy(), kind), out.numpy(), self.weight.stored()
        if stored is not None:
            blocks, type = stored
            products.multiplied_by_stored(entered, blocks.numpy(), type, into)
            return
        first = 0
        for slab in self.weight.slabs(torch.float32):
            products.multiplied(entered, slab.numpy(), into, first)
            first += slab.shape[0]


class PackedEmbedding(nn.Module):
    """ids [...] -> [..., embedding_dim]; `scale` is Gemma's factor on embeddings."""

    def __init__(self, weight: PackedTensor, dtype: torch.dtype, scale: float = 1.0):
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight, self.dtype, self.scale = weight, dtype, scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.weight.rows(ids.reshape(-1), self.dtype).view(*ids.shape, self.embedding_dim)
        return rows if self.scale == 1.0 else rows * self.scale


class PackedExperts(nn.Module):
    """A stack [n_experts, rows, cols] that decodes expert i when indexed with i, as eager experts do."""

    def __init__(self, weight: PackedTensor, dtype: torch.dtype):
        super().__init__()
        self.weight, self.dtype = weight, dtype
        self.shape = weight.shape

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        return self.weight.matrix(int(expert), self.dtype)


def n_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers of a module that are there (not on the meta device), each counted once."""
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers()) if not t.is_meta}
    return sum(math.prod(t.shape) * t.element_size() for t in tensors.values())
