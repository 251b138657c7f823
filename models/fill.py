"""Build transformers' model of an architecture and put a GGUF's tensors into it, packed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from quantmill.gguf_io.convert.names import TensorTable, View
from quantmill.gguf_io.source import TensorSource, TensorSpec
from quantmill.models.errors import ModelError
from quantmill.models.packed import PackedEmbedding, PackedExperts, PackedLinear, PackedTensor, Piece
from quantmill.qkernels import to_float32

# Classes default to token ids of their first model, which a smaller vocabulary does not have.
NO_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def skeleton(model_type: str, settings: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """transformers' model: parameters on the meta device, computed buffers (rotary tables) real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **NO_IDS, **settings)
    # Other implementations take whole stacks; this one indexes one expert at a time.
    config._experts_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        return of_config(config, dtype)


def of_config(config: Any, dtype: torch.dtype) -> Any:
    """transformers' causal language model of a configuration, also where its automatic table has none."""
    import transformers

    if type(config) in transformers.AutoModelForCausalLM._model_mapping:
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    name = type(config).__name__.removesuffix("Config") + "ForCausalLM"
    return getattr(transformers, name)._from_config(config, dtype=dtype)


def stretch_rotation(model: nn.Module, factors: np.ndarray) -> None:
    """Divide rotary frequencies by the GGUF's factors (Llama 3's long context), as ggml_rope_ext does."""
    for module in model.modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, torch.Tensor) and frequencies.numel() == factors.size:
            module.inv_freq = frequencies / torch.tensor(factors, device=frequencies.device)


def matrix_factors(source: TensorSource, table: TensorTable) -> dict[str, tuple[float, ...]]:
    """What matrices of a GGUF are multiplied with (NVFP4's `.scale`), a number for each of a stack, by the name of the
    matrices; not what a model has for itself and multiplies with."""
    names = {spec.name for spec in source.specs()}
    found = {}
    for spec in source.specs():
        weight = f"{spec.name.removesuffix('scale')}weight"
        if spec.name.endswith(".scale") and weight in names and spec.name not in table.views:
            found[weight] = tuple(to_float32(source.read(spec.name), spec.type)[0].tolist())
    return found


def held_blocks(raw: np.ndarray, view: View) -> tuple[torch.Tensor, View]:
    """Stored rows u8 [n_rows, row_bytes] of a GGUF tensor -> blocks [n_matrices, n_rows, row_bytes] as a Piece holds
    them, and the view that is left: reordered rows are put back as blocks, once, and not at every use."""
    with warnings.catch_warnings():
        # The file is mapped read-only; nothing writes to a block.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        blocks = torch.from_numpy(raw).view(view.matrices, -1, raw.shape[-1])
    reordered = isinstance(view.rows, np.ndarray) and len(view.rows) == view.source_matrix[0]
    if reordered and view.columns is None and not view.transpose:
        assert isinstance(view.rows, np.ndarray)
        return blocks[:, torch.from_numpy(np.argsort(view.rows))], replace(view, rows=None)
    return blocks, view


def check_tensors(table: TensorTable, specs: Mapping[str, TensorSpec]) -> None:
    """Names and shapes of all tensors. Raises ModelError."""
    missing = sorted(name for name in table.views if name not in specs)
    if missing:
        raise ModelError(f"{missing[0]} is missing from the GGUF ({len(missing)} of {len(table.views)} are)")
    for name, view in table.views.items():
        wanted = tuple(reversed(view.stored_shape))
        while len(wanted) > 1 and wanted[-1] == 1:
            wanted = wanted[:-1]
        if specs[name].shape != wanted:
            raise ModelError(f"{name}: shape {specs[name].shape} in the file, metadata asks for {wanted}")


class Filler:
    """Puts the GGUF's tensors into a skeleton."""

    def __init__(
        self,
        model: nn.Module,
        table: TensorTable,
        source: TensorSource,
        specs: Mapping[str, TensorSpec],
        device: torch.device,
        dtype: torch.dtype,
        products: str | None = None,
        blocks_on: torch.device | None = None,
    ):
        self.model, self.table, self.source, self.specs = model, table, source, specs
        self.factors = matrix_factors(source, table)
        self.device, self.dtype, self.products = device, dtype, products
        self.blocks_on = blocks_on or device
        self.packed: dict[str, PackedTensor] = {}

    def fill_part(self, is_wanted: Callable[[str], bool]) -> None:
        """Only modules and tensors whose names are wanted. Raises ModelError for one that the GGUF does not have."""
        # Embeddings and heads first: a tied head shares the embedding's blocks.
        for name, module in list(self.model.named_modules()):
            if not is_wanted(name):
                continue
            if isinstance(module, nn.Embedding):
                scale = float(getattr(module, "scalar_embed_scale", 1.0))
                self._replace(name, PackedEmbedding(self._pack(f"{name}.weight"), self.dtype, scale))
            elif isinstance(module, nn.Linear):
                bias = self._dense(f"{name}.bias") if module.bias is not None else None
                groups = getattr(module, "n_groups", 1)
                self._replace(name, PackedLinear(self._pack(f"{name}.weight"), bias, self.products, groups))
        for name, tensor in list(self.model.named_parameters()) + list(self.model.named_buffers()):
            if name not in self.table.uses or not is_wanted(name):
                continue
            module, attribute = self._parent(name)
            if tensor.dim() == 3 and not isinstance(module, nn.Conv1d):
                delattr(module, attribute)
                setattr(module, attribute, PackedExperts(self._pack(name), self.dtype))
            else:
                self._set(module, attribute, self._dense(name))
        for name, module in self.model.named_modules():
            if is_wanted(name) and not isinstance(module, Piece):
                module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(self.device), False)
        left = [name for name, tensor in self.model.named_parameters() if tensor.is_meta and is_wanted(name)]
        if left:
            raise ModelError(f"{left[0]} and {len(left) - 1} more tensors of the model are not in the GGUF")

    def _pack(self, name: str) -> PackedTensor:
        key = name if name in self.table.uses else self._embedding_name()
        if key not in self.packed:
            pieces = [self._piece(use.name, use.matrix) for use in self.table.uses[key]]
            self.packed[key] = PackedTensor(self.table.shapes[key], pieces, self.dtype)
        return self.packed[key]

    def _embedding_name(self) -> str:
        return next(name for name, uses in self.table.uses.items() if uses[0].name == "token_embd.weight")

    def _piece(self, name: str, matrix: int | None) -> Piece:
        raw, type = self.source.fetch(name)
        blocks, view = held_blocks(raw, self.table.views[name])
        return Piece(name, type, blocks.to(self.blocks_on), view, matrix, self.factors.get(name))

    def _dense(self, name: str) -> torch.Tensor:
        views = [self.table.views[use.name] for use in self.table.uses[name]]
        if views[0].indices:
            raw = self.source.read(self.table.uses[name][0].name)
            return torch.from_numpy(raw.view("<i4").astype(np.int64))

        def read(gguf_name: str) -> np.ndarray:
            values = to_float32(self.source.read(gguf_name), self.specs[gguf_name].type)
            return values.reshape(self.table.views[gguf_name].shape)

        return torch.from_numpy(self.table.to_hf(name, read).astype(np.float32)).to(self.dtype)

    def _parent(self, name: str) -> tuple[nn.Module, str]:
        path, _, attribute = name.rpartition(".")
        return self.model.get_submodule(path), attribute

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, attribute = self._parent(name)
        setattr(parent, attribute, module)

    def _set(self, module: nn.Module, attribute: str, values: torch.Tensor) -> None:
        if attribute in module._buffers:
            module._buffers[attribute] = values
        else:
            module._parameters[attribute] = nn.Parameter(values, requires_grad=False)
