"""Large things on their way to other processes: tensors as arrays, and each sent to a host once."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch


class _Packer(pickle.Pickler):
    """Of a tensor its own elements go, not all that its storage holds."""

    def persistent_id(self, found: Any) -> Any:
        if not isinstance(found, torch.Tensor):
            return None
        return found.detach().cpu().contiguous().numpy(), found.device.type != "cpu"


class _Unpacker(pickle.Unpickler):
    def __init__(self, packed: bytes, device: torch.device) -> None:
        super().__init__(io.BytesIO(packed))
        self._device = device

    def persistent_load(self, found: Any) -> torch.Tensor:
        array, was_on_device = found
        tensor = torch.from_numpy(
            array
        ).clone()  # as torch places its own, on which products' rounding may depend
        return tensor.to(self._device) if was_on_device else tensor


def packed(value: Any) -> bytes:
    """value: of this package's classes and functions, tensors, arrays."""
    buffer = io.BytesIO()
    _Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def unpacked(value: bytes, device: torch.device) -> Any:
    """device: for tensors that were on one."""
    return _Unpacker(value, device).load()


class Parcel:
    """Something packed that many pieces name; a host that opens it fetches it once."""

    def __init__(self, ray: Any, value: Any) -> None:
        self._ray_ref = ray.put(packed(value))

    def open(self, device: torch.device) -> Any:
        from quantmill.jobs.cluster import ray_module

        return unpacked(ray_module().get(self._ray_ref), device)

    @property
    def name(self) -> str:
        return str(self._ray_ref.hex())
