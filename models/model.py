"""Run a model in torch: a GGUF on its packed blocks, or a Hugging Face directory as transformers loads it.

    loaded = load("model-Q4_K_M.gguf", device="cuda")
    logits = loaded.logits(ids)      # ids [n_seq, n_tokens] i64 -> [n_seq, n_tokens, n_vocab]

The architecture is transformers' own code, built from the GGUF's metadata without weights, as the family says
(gguf_io/convert/families); then every matrix is replaced by its blocks (packed.py), with the reverse of the
conversion's reordering from the table that conversion uses (gguf_io/convert/names.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from quantmill.gguf_io.convert import is_packed
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.names import TensorTable, tensor_table
from quantmill.gguf_io.source import TensorSource, open_source
from quantmill.models import tokenizer
from quantmill.models.arithmetic import dtype_of, products_of, require_dtype
from quantmill.models.attention import with_short_attention
from quantmill.models.capture import named_layers
from quantmill.models.devices import usable_device
from quantmill.models.errors import ModelError, said_of_transformers
from quantmill.models.family import directory_family, facts_of, runnable_family
from quantmill.models.fill import Filler, check_tensors, skeleton, stretch_rotation
from quantmill.models.overflow import damaged, first_bad_module
from quantmill.models.packed import n_bytes
from quantmill.models.pipeline import spread, stages_for
from quantmill.models.quiet import quiet_transformers
from quantmill.models.tokenizer import Tokenizer


@dataclass
class LoadedModel:
    """A causal language model ready to run.

    name_map: Hugging Face tensor name -> the GGUF tensors it is stored in (two for a fused gate and up).
    table: names, shapes and cuts of all tensors, both ways (gguf_io.convert.names).
    n_bytes: of the weights as they are held. source: the GGUF, kept open while its blocks are mapped.
    products: the kind of qkernels.products that matrices are multiplied by; all else is of `dtype`.
    """

    path: Path
    model: Any  # transformers' PreTrainedModel
    tokenizer: Tokenizer
    name_map: Mapping[str, tuple[str, ...]]
    table: TensorTable
    architecture: str
    n_vocab: int
    n_bytes: int
    device: torch.device
    dtype: torch.dtype
    source: TensorSource | None = None
    products: str | None = None

    @property
    def computing(self) -> str:
        """What load() was given for dtype."""
        return self.products or str(self.dtype).removeprefix("torch.")

    @property
    def arithmetic(self) -> str:
        """For people: the type that is computed with, and where it is another for products."""
        return f"float32, products {self.products}" if self.products else self.computing

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, first: int = 0) -> torch.Tensor:
        """ids [n_seq, n_tokens] i64 -> logits [n_seq, n_tokens - first, n_vocab], positions from `first` on.

        Raises ModelError when a logit is not finite, naming the tensor of the file that is not either, or the first
        module whose output was not.
        """
        ids = ids.to(self.device)
        kept = ids.shape[1] - first
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if first and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            arguments["logits_to_keep"] = kept
        out = self.model(**arguments).logits[:, -kept:]
        ends = torch.stack(torch.aminmax(out))  # both are NaN where one logit is
        if not bool(torch.isfinite(ends).all()):
            why = damaged(self.source) or self._first_bad_module(ids)
            raise ModelError(f"{self.path}: logits are not finite; {why}")
        return out

    def layer(self, index: int) -> AbstractContextManager[Any]:
        """One of its layers (models.capture.named_layers) with its weights; here they are always there."""
        return nullcontext(named_layers(self.model)[1][index])

    def close(self) -> None:
        if self.source is not None:
            self.source.close()

    def _first_bad_module(self, ids: torch.Tensor) -> str:
        return first_bad_module(self.model, self.name_map, ids)


Loaded = TypeVar("Loaded", bound=LoadedModel)


def load(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    tokenizer_path: str | Path | None = None,
    converted: bool = False,
) -> LoadedModel:
    """Load a GGUF (single or split) or a Hugging Face directory.

    device: torch's name of one, or "auto" (models.devices).
    dtype: of activations and decoded weights ("float32", "bfloat16", "float16"), or a kind of products ("int16",
    "bfloat16x3"): float32, but for products of a GGUF's matrices; for processors that have them (automatic_dtype).
    tokenizer_path: a Hugging Face directory whose tokenizer is used instead of the model's own.
    converted: a directory too runs as the GGUF that it becomes, with all that this holds.
    Raises ModelError for a model that cannot be built, OSError for a path that cannot be read.
    """
    path = Path(path)
    target, compute, products, given = asked(device, dtype, tokenizer_path)
    stages = stages_for(weight_bytes(path, compute), target) if target.type == "cuda" else []
    place = torch.device("cpu") if stages else target
    loaded: LoadedModel
    if path.is_dir() and not converted and not is_packed(path):
        loaded = _load_directory(path, place, compute, given)
    else:  # packed too: transformers needs a library or a GPU for each kind of packing
        loaded = from_source(open_source(path), path, place, compute, given, products)
    if stages:
        spread(loaded.model, stages)
        loaded.device = stages[0].device
    return loaded


def weight_bytes(path: Path, dtype: torch.dtype) -> int:
    """About what a model's weights take: blocks as they are, a checkpoint in 16 bits in the type asked for."""
    if not path.is_dir():
        with closing(open_source(path)) as source:
            return sum(part.stat().st_size for part in source.paths)
    growth = 2 if dtype == torch.float32 and not is_packed(path) else 1
    return growth * sum(file.stat().st_size for file in path.glob("*.safetensors"))


def asked(
    device: str, dtype: str, tokenizer_path: str | Path | None
) -> tuple[torch.device, torch.dtype, str | None, Tokenizer | None]:
    """What load() was asked for; the third is LoadedModel.products. Raises ModelError."""
    target, compute = usable_device(device), dtype_of(dtype)
    require_dtype(dtype, target)
    if tokenizer_path and not Path(tokenizer_path).is_dir():
        raise ModelError(f"{tokenizer_path}: is no directory; a tokenizer is a Hugging Face directory")
    given = tokenizer.from_directory(Path(tokenizer_path)) if tokenizer_path else None
    return target, compute, products_of(dtype), given


def _load_directory(
    path: Path, device: torch.device, dtype: torch.dtype, given: Tokenizer | None
) -> LoadedModel:
    from transformers import AutoModelForCausalLM

    family, raw = directory_family(path)
    with quiet_transformers(), said_of_transformers(f"{path}: transformers cannot load this directory"):
        model: Any = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, trust_remote_code=False)
    model = model.to(device).eval()
    table = _table(family, family.completed(raw), model)
    return LoadedModel(
        path=path,
        model=model,
        tokenizer=given or tokenizer.from_directory(path),
        name_map=_name_map(table),
        table=table,
        architecture=model.config.model_type,
        n_vocab=model.get_output_embeddings().weight.shape[0],
        n_bytes=n_bytes(model),
        device=device,
        dtype=dtype,
    )


def from_source(
    source: TensorSource,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    given: Tokenizer | None = None,
    products: str | None = None,
    blocks_on: torch.device | None = None,
) -> LoadedModel:
    """The model of GGUF tensors and metadata, wherever they come from; `path` names it in messages.

    blocks_on: where the blocks of matrices lie, None: where the rest does.
    """
    return built(LoadedModel, source, path, device, dtype, given, _everything, products, blocks_on)


def _everything(model: Any) -> Callable[[str], bool]:
    return lambda name: True


def built(
    kind: type[Loaded],
    source: TensorSource,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    given: Tokenizer | None,
    is_held: Callable[[Any], Callable[[str], bool]],
    products: str | None = None,
    blocks_on: torch.device | None = None,
) -> Loaded:
    """from_source's. is_held: gives, for transformers' model, which of its modules get their weights now."""
    specs = {spec.name: spec for spec in source.specs()}
    facts = facts_of(source, path)
    model, table = table_of(source, path, dtype)
    check_tensors(table, specs)
    filler = Filler(model, table, source, specs, device, dtype, products, blocks_on)
    filler.fill_part(is_held(model))
    if "rope_freqs.weight" in specs:
        stretch_rotation(model, facts.read("rope_freqs.weight").ravel())
    model.eval()
    if products is not None:
        object.__setattr__(model, "forward", with_short_attention(model.forward, products))
    vocabulary = given or tokenizer.from_metadata(source.metadata)
    return kind(
        path=path,
        model=model,
        tokenizer=vocabulary,
        name_map=_name_map(table),
        table=table,
        architecture=facts.architecture,
        n_vocab=facts.shapes["token_embd.weight"][1],
        n_bytes=n_bytes(model),
        device=device,
        dtype=dtype,
        source=source,
        products=products,
    )


def table_of(source: TensorSource, path: Path, dtype: torch.dtype) -> tuple[Any, TensorTable]:
    """transformers' model of a GGUF, its parameters on the meta device, and where each of them is stored."""
    facts = facts_of(source, path)
    family = runnable_family(facts, path)
    with (
        quiet_transformers(),
        said_of_transformers(f"{path}: transformers cannot build what its metadata describes"),
    ):
        settings = family.settings(facts)
        model = skeleton(family.model_type, settings, dtype)
        return model, _table(family, family.completed(settings), model)


def _table(family: Family, completed: Mapping[str, Any], model: Any) -> TensorTable:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if completed["tie_word_embeddings"]:  # the head is the embedding under a second name
        shapes.pop("lm_head.weight", None)
    return tensor_table(family, completed, shapes)


def _name_map(table: TensorTable) -> dict[str, tuple[str, ...]]:
    return {name: tuple(use.name for use in uses) for name, uses in table.uses.items()}
