"""What a plan is made from, beside the model: the user's options and an importance matrix's index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantmill.qkernels.types import Search, get_search
from quantmill.recipe.overrides import Override
from quantmill.recipe.patterns import TypeRule
from quantmill.recipe.presets import get_file_type


@dataclass(frozen=True)
class Recipe:
    """What the user asked for. `file_type`: a name of recipe.presets.FILE_TYPES, an alias, a number, or COPY.

    `search`: "default" gives llama.cpp's blocks, "thorough" better ones of the same types.
    Raises RecipeError for any other file type, QuantizeError for any other search.
    """

    file_type: str
    rules: tuple[TypeRule, ...] = ()
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    fallback: bool = True
    allow_requantize: bool = False
    prune_layers: tuple[int, ...] = ()
    overrides: tuple[Override, ...] = ()
    keep_split: bool = False
    split_max_bytes: int | None = None
    search: Search = "default"

    def __post_init__(self) -> None:
        get_search(self.search)
        object.__setattr__(self, "file_type", get_file_type(self.file_type))


@dataclass(frozen=True)
class ImportanceIndex:
    """What planning must know of an importance matrix, after include and exclude filters.

    `n_values`: tensor name → number of values; `file`: its name as the user gave it.
    """

    file: str
    n_values: Mapping[str, int]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
