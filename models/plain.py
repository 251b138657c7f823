"""transformers' model with its weights in plain tensors, to be saved as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantmill.gguf_io import TensorSource
from quantmill.models.errors import ModelError, said_of_transformers
from quantmill.models.family import facts_of, runnable_family
from quantmill.models.fill import check_tensors
from quantmill.models.model import table_of
from quantmill.models.quiet import quiet_transformers
from quantmill.qkernels import to_float32


def config_of(source: TensorSource, path: Path) -> Any:
    """What transformers' configuration class makes of a model's settings, all that it supplies itself included."""
    from transformers import AutoConfig

    facts = facts_of(source, path)
    family = runnable_family(facts, path)
    with (
        quiet_transformers(),
        said_of_transformers(f"{path}: transformers cannot build what its metadata describes"),
    ):
        return AutoConfig.for_model(family.model_type, **family.settings(facts))


def plain_model(source: TensorSource, path: Path, dtype: torch.dtype) -> Any:
    """The model of GGUF tensors and metadata; parameters in `dtype`, those that the class computes in float32 in that.

    Raises ModelError for a tensor that is missing, or has another shape than metadata asks for.
    """
    specs = {spec.name: spec for spec in source.specs()}
    model, table = table_of(source, path, dtype)

    def read(name: str) -> np.ndarray:
        values = to_float32(np.ascontiguousarray(source.read(name)), specs[name].type)
        return values.reshape(table.views[name].shape)

    check_tensors(table, specs)
    state = {}
    for name, tensor in model.state_dict().items():
        if name in table.uses:
            values = torch.from_numpy(table.to_hf(name, read).astype(np.float32))
            state[name] = values.reshape(tensor.shape).to(tensor.dtype)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if left:
        raise ModelError(
            f"{path}: {left[0]} and {len(left) - 1} more tensors of the model are not in the GGUF"
        )
    return model.eval()
