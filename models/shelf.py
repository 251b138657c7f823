"""What is kept of every batch between two uses of it: where it was computed, or in main memory, where there is more."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_MAIN_MEMORY = torch.device("cpu")


class Shelf(MutableMapping[Key, Value]):
    """Tensors, and tuples, lists and dicts that hold some; others stay as they are.

    away: None, or the device that what is asked for is brought back to, the shelf being in main memory. What comes back
    has the same bits, and is a copy: a change of it is to be put back.
    """

    def __init__(self, away: torch.device | None = None) -> None:
        self._away, self._values = away, dict[Key, Value]()

    def __getitem__(self, key: Key) -> Value:
        value = self._values[key]
        return value if self._away is None else moved(value, self._away)

    def __setitem__(self, key: Key, value: Value) -> None:
        self.put({key: value})

    def put(self, values: Mapping[Key, Value]) -> None:
        """Several at once: a tensor that is in two of them is kept once."""
        if self._away is not None:
            values = moved(dict(values), _MAIN_MEMORY)
        self._values.update(values)

    def __delitem__(self, key: Key) -> None:
        del self._values[key]

    def clear(self) -> None:
        self._values.clear()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def moved(value: Any, device: torch.device, known: dict[int, torch.Tensor] | None = None) -> Any:
    """The same with all tensors on the device. known: those that were moved before, by what they were."""
    known = {} if known is None else known
    if isinstance(value, torch.Tensor):
        if id(value) not in known:
            known[id(value)] = value.to(device, copy=True)
        return known[id(value)]
    if type(value) is dict:
        return {key: moved(one, device, known) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(one, device, known) for one in value)
    return value
