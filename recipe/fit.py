"""How large a file may be so that it fits a memory together with the KV cache of a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantmill.gguf_io import Metadata
from quantmill.gguf_io.sensible import sensible
from quantmill.recipe.errors import RecipeError

CACHE_BYTES = 2  # of a number in llama.cpp's KV cache, F16 by default
BUFFER_BYTES = 512 << 20  # compute buffers and what the driver takes
KEPT_FREE = 0.03  # of the memory


@dataclass(frozen=True)
class Fit:
    """memory: bytes of the card or machine. cache: of the keys and values of n_ctx tokens. file: what is left."""

    memory: int
    n_ctx: int
    cache: int

    @property
    def headroom(self) -> int:
        return BUFFER_BYTES + int(KEPT_FREE * self.memory)

    @property
    def file(self) -> int:
        return self.memory - self.cache - self.headroom

    @property
    def formula(self) -> str:
        return (
            f"{self.memory} bytes - {self.cache} for the keys and values of {self.n_ctx} tokens - {self.headroom} for "
            f"buffers = {self.file} bytes for the file"
        )


def fit(memory: int, n_ctx: int, metadata: Metadata) -> Fit:
    """Raises RecipeError when the cache alone does not fit.

    The cache is counted as if every layer saw the whole context; layers with a sliding window need less. Where the
    metadata gives the rank of latent attention (MLA), that is what llama.cpp stores. (llama-kv-cache.cpp)
    """
    arch = metadata.value("general.architecture")
    n_layers = metadata.value(f"{arch}.block_count")
    if not isinstance(n_layers, int):
        raise RecipeError(
            f"the metadata has no {arch}.block_count; --fit cannot tell the size of the KV cache"
        )
    found = Fit(memory, n_ctx, CACHE_BYTES * n_ctx * _numbers_a_token(arch, n_layers, metadata))
    if found.file <= 0:
        raise RecipeError(f"nothing is left for the model: {found.formula}; a smaller --ctx helps")
    return found


def _numbers_a_token(arch: str, n_layers: int, metadata: Metadata) -> int:
    """Keys and values of all layers."""

    def get(key: str, default: Any = None) -> Any:
        full = f"{arch}.{key}"
        return sensible(full, metadata[full].value) if full in metadata else default

    rank = get("attention.kv_lora_rank")
    if rank is not None:
        return n_layers * (int(rank) + int(get("rope.dimension_count", 0)))
    heads = get("attention.head_count_kv", get("attention.head_count"))
    if heads is None:
        raise RecipeError(
            f"the metadata has no {arch}.attention.head_count; --fit cannot tell the size of the cache"
        )
    by_layer = (
        list(heads) if isinstance(heads, Sequence) or hasattr(heads, "__iter__") else [heads] * n_layers
    )
    largest = get("attention.head_count")
    n_heads = max(largest) if hasattr(largest, "__iter__") else largest
    width = get("embedding_length", 0) // n_heads if n_heads else 0
    keys, values = get("attention.key_length", width), get("attention.value_length", width)
    return sum(int(n) * (int(keys) + int(values)) for n in by_layer[:n_layers])
