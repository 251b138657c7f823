"""A collection that is not finished, in a file: the matrix so far, which any tool can read, and beside it the sums as
they are kept while collecting, so that a run which goes on from them comes to the bytes of one that was never stopped.

The sums of place number i are the tensors `quantmill.i.square.high` and `.low`, F32 [n_cols, n_mat], the same of
`plain` with Σx, and `quantmill.i.rows`, I64 [n_mat]. The key `quantmill.imatrix.run` says, as JSON, which chunks of
which run they are of, the names of the places, and the SHA-256 of all this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantmill.errors import of_another_run
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from quantmill.gguf_io.source import TensorSource, open_source
from quantmill.imatrix.collect import Done
from quantmill.imatrix.gguf_format import write_gguf
from quantmill.imatrix.matrix import ImatrixError, ImportanceMatrix
from quantmill.imatrix.sums import Sums

RUN = "quantmill.imatrix.run"
_ANEW = "remove it to begin anew"


def save_unfinished(path: Path, matrix: ImportanceMatrix, done: Done, identity: str) -> None:
    """Write what is done under `path`, all or nothing. matrix: of the same; identity: of the run.

    Raises GGUFError when the disk is full, OSError when not permitted; the old file then stays as it was.
    """
    about = {
        "identity": identity,
        "n_chunks": done.n_chunks,
        "nll": done.nll,
        "nll2": done.nll2,
        "n_scored": done.n_scored,
        "places": list(done.sums),
        "means": any(sums.plain is not None for sums in done.sums.values()),
    }
    arrays = {
        name: values for i, sums in enumerate(done.sums.values()) for name, values in _arrays(i, sums).items()
    }
    text = json.dumps({**about, "sha256": _hash_of(about, arrays)})
    write_gguf(path, matrix, {RUN: MetaValue(GGUFValueType.STRING, text)}, arrays)


def load_unfinished(path: Path, identity: str) -> Done:
    """What is done of the run of this identity. Raises ImatrixError for a file of another run or of an earlier version,
    or one that is damaged; OSError when it cannot be read."""
    try:
        source = open_source(path)
        try:
            return _read(path, source, identity)
        finally:
            source.close()
    except GGUFError as error:
        raise ImatrixError(f"{error}; {_ANEW}") from None


def _read(path: Path, source: TensorSource, identity: str) -> Done:
    try:
        about = dict(json.loads(source.metadata.value(RUN, "")))
        expected = about.pop("sha256", None)
        found = about["identity"]
    except (ValueError, KeyError, TypeError):
        raise ImatrixError(f"{path}: does not say how far it got; {_ANEW}") from None
    if expected is None:
        raise ImatrixError(
            f"{path}: was left by an earlier version of quantmill, whose sums are rounded already; go on with that "
            f"version, or {_ANEW}"
        )
    if found != identity:
        raise ImatrixError(of_another_run(path, "model, text or options"))
    arrays: dict[str, np.ndarray] = {}

    def read(name: str, dtype: type[np.generic]) -> np.ndarray:
        arrays[name] = np.array(source.read(name)).reshape(-1).view(dtype)
        return arrays[name]

    try:
        sums = {name: _sums(i, about["means"], read) for i, name in enumerate(about["places"])}
        is_whole = _hash_of(about, arrays) == expected
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ImatrixError(f"{path}: is damaged, for its SHA-256 is not {expected}; {_ANEW}")
    return Done(about["n_chunks"], about["nll"], about["nll2"], about["n_scored"], sums)


def _arrays(i: int, sums: Sums) -> dict[str, np.ndarray]:
    """By the names of their tensors; on the host."""
    pairs = {"square": sums.square} | ({} if sums.plain is None else {"plain": sums.plain})
    halves = {
        f"quantmill.{i}.{what}.{half}": values.cpu().numpy()
        for what, pair in pairs.items()
        for half, values in zip(("high", "low"), pair, strict=True)
    }
    return {**halves, f"quantmill.{i}.rows": sums.counts}


def _sums(i: int, with_means: bool, read: Callable[[str, type[np.generic]], np.ndarray]) -> Sums:
    counts = read(f"quantmill.{i}.rows", np.int64)

    def half(what: str) -> torch.Tensor:
        return torch.from_numpy(read(f"quantmill.{i}.{what}", np.float32).reshape(len(counts), -1))

    square = half("square.high"), half("square.low")
    return Sums(counts, square, (half("plain.high"), half("plain.low")) if with_means else None)


def _hash_of(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, values in sorted(arrays.items()):
        found.update(f"{name} {values.size}".encode())
        found.update(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data)
    return found.hexdigest()
