"""The tensors of a checkpoint as readers: those stored as floats, and those that a format makes of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantmill.gguf_io.convert.names import TensorTable
from quantmill.gguf_io.convert.storage.format import Format
from quantmill.gguf_io.convert.storage.methods import Packing, packing_of
from quantmill.gguf_io.convert.storage.reader import Floats, Reader, check_indices, check_values
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor

# Names that only parts of packed weights have.
_OF_PACKED = (".weight_scale", "_scale_inv", ".weight_packed", ".qweight", ".qzeros", ".qscale_weight")


def readers(
    config: Mapping[str, Any], stored: Mapping[str, StoredTensor], warn: Callable[[str], None]
) -> dict[str, Reader]:
    """A reader for every tensor that holds values; scales and the like belong to the reader of what they scale.

    In the order of llama.cpp's converter. Raises GGUFError for a quantization that cannot be read, for scales without
    their weight and codes without their scales, and where tensors do not fit what config.json says of them.
    """
    packing = packing_of(config)
    made = {name: _made(name, tensor, packing, stored) for name, tensor in stored.items()}
    used = {part.name for name, one in made.items() if one for part in one[0].found(name, stored).values()}
    found: dict[str, Reader] = {}
    last: dict[str, Reader] = {}
    for name, tensor in stored.items():
        one = made[name]
        if one is not None:
            format, reader = one
            (last if format.last else found)[format.weight_name(name)] = reader
        elif name not in used and not (packing.formats and name.endswith(packing.unused)):
            _require_no_part(name, tensor, packing)
            found[name] = Floats(tensor)
    if packing.method is not None and not any(made.values()):
        warn(
            f"config.json says that the weights are quantized by {packing.method}, but none is stored so; "
            "they are read as they are"
        )
    twice = sorted(found.keys() & last.keys())
    if twice:
        raise GGUFError(f"{stored[twice[0]].path}: {twice[0]} is stored twice, packed and as it is")
    return found | last


def check(directory: Path, table: TensorTable, found: Mapping[str, Reader]) -> None:
    """Raises GGUFError for what can be wrong with the values, before a byte of them is converted."""
    for source, uses in table.uses.items():
        n_things = table.views[uses[0].name].indices
        if n_things:
            check_indices(source, found[source], n_things)
        else:
            check_values(source, found[source])
    for name in table.must_be_zero:
        if found[name].values(slice(None), slice(None)).any():
            raise GGUFError(
                f"{directory}: {name} is not zero; the architecture has no such tensor in llama.cpp"
            )


def whole_numbers(ends: tuple[str, ...], stored: Mapping[str, StoredTensor]) -> dict[str, list[int]]:
    """The numbers of the small tensors whose names end so, by these ends. Raises GGUFError for others than numbers."""
    numbers = {}
    for name, tensor in stored.items():
        end = name.rpartition(".")[2]
        if end in ends:
            if tensor.dtype not in ("I64", "I32") or len(tensor.shape) != 1:
                raise GGUFError(
                    f"{tensor.path}: {name} {tensor.dtype} {list(tensor.shape)} must be a list of whole numbers, I64"
                )
            numbers[end] = [int(value) for value in tensor.array()]
    return numbers


def _made(
    name: str, tensor: StoredTensor, packing: Packing, stored: Mapping[str, StoredTensor]
) -> tuple[Format, Reader] | None:
    """The first format that claims a tensor and that its tensors fit; None: the tensor holds no codes."""
    claiming = [format for format in packing.formats if format.claims(name, tensor)]
    if claiming and (len(tensor.shape) < 2 or 0 in tensor.shape):
        raise GGUFError(
            f"{tensor.path}: {name} {list(tensor.shape)} ({claiming[0].name}) is no matrix; the checkpoint is wrong"
        )
    errors: list[GGUFError] = []
    for format in claiming:
        if not format.missing(name, stored):
            try:
                return format, format.make(format.found(name, stored))
            except GGUFError as error:
                errors.append(error)
    if errors:
        raise errors[0]
    if claiming:
        wanted = " or ".join(format.missing(name, stored)[0] for format in claiming)
        raise GGUFError(
            f"{tensor.path}: {name} ({claiming[0].name}) has no {wanted}; the checkpoint is incomplete"
        )
    return None


def _require_no_part(name: str, tensor: StoredTensor, packing: Packing) -> None:
    if not name.endswith(_OF_PACKED):
        return
    if packing.method is None:
        raise GGUFError(
            f"{tensor.path}: {name} is a part of a quantized weight, but config.json has no quantization_config; "
            "fetch the configuration again"
        )
    raise GGUFError(f"{tensor.path}: {name} has no weight to scale (config.json: {packing.method})")
