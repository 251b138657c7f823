"""A format: which tensors of a checkpoint make one matrix, and what reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantmill.gguf_io.convert.storage.reader import Reader
from quantmill.gguf_io.safetensors import StoredTensor

Parts = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Format:
    """name: for people. mark: how the name of the tensor with the codes ends, "" where anything may end so; dtypes: of
    that tensor. parts, optional: what else belongs to it, role → how its name ends in place of the mark. make: the
    reader of these tensors, "codes" among them; raises GGUFError where they do not fit. weight: how the name of the
    tensor they make ends. last: llama.cpp's converter writes it behind the tensors that are stored as they are.
    """

    name: str
    mark: str
    dtypes: tuple[str, ...]
    parts: Mapping[str, str]
    make: Callable[[Parts], Reader]
    optional: Mapping[str, str] = field(default_factory=dict)
    weight: str = ""
    last: bool = False

    def claims(self, name: str, tensor: StoredTensor) -> bool:
        return name.endswith(self.mark) and tensor.dtype in self.dtypes

    def weight_name(self, name: str) -> str:
        return name.removesuffix(self.mark) + (self.weight or self.mark)

    def missing(self, name: str, stored: Mapping[str, StoredTensor]) -> list[str]:
        """The tensors that must be there and are not."""
        base = name.removesuffix(self.mark)
        return [base + end for end in self.parts.values() if base + end not in stored]

    def found(self, name: str, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """The tensors that are there, by role."""
        base = name.removesuffix(self.mark)
        ends = {**self.parts, **self.optional}
        there = {role: stored[base + end] for role, end in ends.items() if base + end in stored}
        return {"codes": stored[name], **there}
