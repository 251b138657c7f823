"""The importance matrix in memory: Σx² of every input column of every weight, and how many rows it saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantmill.errors import QuantmillError

# llama-quantize only warns when these two do not fit: the rows of an embedding are looked up, not multiplied.
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


class ImatrixError(QuantmillError):
    """A file, an entry or a text that cannot serve for an importance matrix; the message is for the user."""


class ActivationError(ImatrixError):
    """What enters a tensor is not finite; the message names it."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What one weight matrix, or one stack of experts, has seen.

    in_sum2: [n_mat, n_cols] f32, Σx² of the activations entering the matmul
    counts:  [n_mat] i64, rows summed; one count may stand for several matrices laid end to end in one row
    in_sum:  [n_mat, n_cols] f32 or None, Σx; llama.cpp ignores it, the mean-based statistics need it
    """

    in_sum2: np.ndarray
    counts: np.ndarray
    in_sum: np.ndarray | None = None

    @property
    def n_values(self) -> int:
        return self.in_sum2.size

    def means(self) -> np.ndarray:
        """[n_mat, n_cols] f32: Σx² / count; 1.0 where the count is zero, as llama-quantize has it."""
        counts = self.counts[:, None].astype(np.float32)
        seen = counts > 0
        means = np.divide(self.in_sum2, counts, where=seen, out=np.ones_like(self.in_sum2))
        return means


@dataclass(frozen=True, eq=False)
class ImportanceMatrix:
    """Entries by GGUF tensor name, sorted by the bytes of the name, and where they come from.

    chunk_count, chunk_size: chunks of text seen, and tokens per chunk
    legacy: read from a .dat file, whose counts are whole chunks and equal for all experts
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 512
    legacy: bool = False

    def __post_init__(self) -> None:
        ordered = sorted(self.entries, key=name_key)
        object.__setattr__(self, "entries", {name: self.entries[name] for name in ordered})

    def filtered(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> ImportanceMatrix:
        """Keep the entries whose name contains one of `include`, or drop those containing one of `exclude`.

        Raises ImatrixError when both are given (llama-quantize refuses that too).
        """
        include, exclude = tuple(include), tuple(exclude)
        if include and exclude:
            raise ImatrixError("include-weights and exclude-weights cannot be used together; give only one")
        kept = {
            name: entry
            for name, entry in self.entries.items()
            if (not include or any(part in name for part in include))
            and not any(part in name for part in exclude)
        }
        return replace(self, entries=kept)

    def columns(self, name: str, n_cols: int, n_mat: int = 1) -> np.ndarray | None:
        """[n_mat, n_cols] f32: mean squares as llama-quantize reads them; row e weighs expert e.

        None when there is no entry, or when it belongs to a token embedding and does not fit.
        Raises ImatrixError when any other entry holds a different number of values.
        Source: common/imatrix-loader.cpp, src/llama-quant.cpp (lookup by name, size ne0 · ne2).
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry.n_values != n_cols * n_mat:
            if name in EMBEDDINGS:
                return None
            raise ImatrixError(
                f"{name}: the importance matrix holds {entry.n_values} values, the tensor needs "
                f"{n_cols} x {n_mat}; it was made for another model (or leave it out with --exclude-weights)"
            )
        return entry.means().reshape(n_mat, n_cols)


def name_key(name: str) -> bytes:
    """Sort key of a tensor name: std::string compares bytes."""
    return name.encode("utf-8", "surrogateescape")


def checked_entry(
    name: str, in_sum2: np.ndarray, counts: np.ndarray, in_sum: np.ndarray | None = None
) -> Entry:
    """Entry of finite, non-negative sums and counts; raises ImatrixError naming the first bad value."""
    for what, values, signed in (("Σx²", in_sum2, False), ("count", counts, False), ("Σx", in_sum, True)):
        if values is None:
            continue
        flat = values.reshape(-1)
        bad = ~np.isfinite(flat) if signed else ~(np.isfinite(flat) & (flat >= 0))
        if bad.any():
            index = int(np.argmax(bad))
            raise ImatrixError(
                f"{name}: {what} number {index} is {flat[index]}; sums of squares and counts are "
                "finite and not negative, so the file is damaged: collect it again"
            )
    return Entry(in_sum2, counts, in_sum)
