"""What tests of several files start from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Workers side by side share the cores: a pool of threads in each would wait for the others. Before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background jobs begin with interrupts ignored, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Write bytes to a file of the test's own folder; gives its path."""

    def store(data: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return store


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one file of each kind that commands read."""
    from tests.support.places import furnished

    return furnished(tmp_path)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A packed checkpoint by its name, written once a file of tests."""
    from tests.support.convert_models import written_once
    from tests.support.packed_models import write_packed

    return written_once(write_packed, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def opened(packed: Callable[[str], Path]) -> Callable[[str], Any]:
    """The source of a model, opened once."""
    from quantmill.gguf_io.convert import open_checkpoint

    sources: dict[str, Any] = {}

    def open_once(name: str) -> Any:
        if name not in sources:
            sources[name] = open_checkpoint(packed(name), "bf16" if name == "fp8-as-q8" else "f32")
        return sources[name]

    return open_once


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has not begun to answer in 0.3 seconds hangs."""
    from quantmill.qkernels.guard import Guard

    start = Guard.__init__

    def begin(self: Guard, *given: Any, **named: Any) -> None:
        start(self, *given, **named)
        object.__setattr__(self, "first_seconds", 0.3)

    monkeypatch.setattr(Guard, "__init__", begin)
