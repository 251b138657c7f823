"""Compiled CPU code kept between runs.

numba's own cache stamps a function with its own file only: a change in a callee elsewhere would meet stale code, and
two functions of one file can overwrite each other's entries when two processes start at once. Here every driver has a
folder of its own, named by a hash of everything its code is made of, and holds exactly one compiled signature; so an
entry is right or absent, and processes that race write the same thing.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache

from qkernels.cache import cache_dir
from qkernels.lanes.cpu_words import WIDTH

# numpy's error model: the Python one puts a test for zero into every division.
_OPTIONS = {"error_model": "numpy", "nogil": True}
_njit: Any = njit
entry = _njit(**_OPTIONS)
# For what only compiled functions call: without ways in from Python and C a search compiles a sixth faster.
inner = _njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)
_HERE = Path(__file__).resolve().parent
_MACHINERY = sorted(_HERE.glob("cpu*.py")) + [
    _HERE / name for name in ("compiled.py", "simd.py", "loader.py")
]


def _fingerprint(text: str, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    parts = [text, numba.__version__, llvmlite.__version__, str(WIDTH), llvm.get_host_cpu_name()]
    parts.append(llvm.get_host_cpu_features().flatten())
    for part in parts:
        digest.update(part.encode() + b"\0")
    for file in [*_MACHINERY, *files]:
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


class _Folder:
    """What numba calls a locator: where the entries of one function live and what they are valid for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        return self._path.name

    def get_disambiguator(self) -> str:
        return "0"

    def ensure_cache_path(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)


def _cache_for(function: Any, name: str, folder: Path) -> FunctionCache:
    class Implementation(CompileResultCacheImpl):
        def __init__(self, py_func: Any) -> None:
            self._lineno = 1
            self._locator = _Folder(folder)
            self._filename_base = name

    class OneFolderCache(FunctionCache):
        _impl_class = Implementation

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            try:
                return super().load_overload(sig, target_context)
            except OSError:
                return None
            except (EOFError, pickle.UnpicklingError):
                # A damaged entry: empty the index, or saving the new one would read the damage again.
                with contextlib.suppress(OSError):
                    self._cache_file.flush()
                return None

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                super().save_overload(sig, data)
            except OSError:
                return  # no place to write (read-only home, full disk): this process has its code all the same

    return OneFolderCache(function)


def cached(
    dispatcher: Any, signature: Any, name: str, text: str, files: Iterable[Path]
) -> Callable[..., None]:
    """`dispatcher` compiled for one signature, from the cache if its sources have not changed.

    `text` and `files` are what the function is made of besides the machinery: generated source and program files.
    """
    folder = cache_dir("numba") / _fingerprint(text + str(signature), files)
    dispatcher._cache = _cache_for(dispatcher.py_func, name, folder)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher
