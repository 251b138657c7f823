"""Large files pass through memory: what was not there before is not left there; what was, stays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quantmill.gguf_io import GGUFSink, GGUFSource, Metadata, OutputTensor, passing

ROWS, COLUMNS = 2048, 1024


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, on the disk."""
    monkeypatch.setattr(passing, "LARGE", 1 << 20)
    path = tmp_path / "m.gguf"
    rows = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    with GGUFSink(path, Metadata(), [OutputTensor("a", (COLUMNS, ROWS), "F32")]) as sink:
        sink.write("a", rows)
        sink.commit()
    if share(path, forget=True) != 0:
        pytest.skip(f"what lies in {tmp_path} cannot be dropped from memory, or this system cannot say so")
    return path


def share(path: Path, forget: bool = False) -> float | None:
    with path.open("rb") as file:
        if forget:
            os.sync()
            passing.drop(file.fileno(), 0, 0)
        return passing.share_in_memory(file.fileno())


def read_through(path: Path) -> np.ndarray:
    """All rows, in slabs that are given back."""
    parts = []
    with GGUFSource(path) as source:
        for first in range(0, ROWS, 256):
            parts.append(source.read("a", first, 256).copy())
            source.release("a", first, 256)
    return np.concatenate(parts)


def test_a_source_that_was_not_in_memory_is_not_left_there(large: Path) -> None:
    rows = read_through(large).view(np.float32)
    assert (rows.reshape(-1) == np.arange(ROWS * COLUMNS)).all()
    left = share(large)
    assert left is not None
    assert left < 0.25


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says how a map is read")
def test_what_is_missing_is_read_forwards(large: Path) -> None:
    """Once in twenty times the last page of the file brought back megabytes before it."""

    def flags() -> str:
        maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split(str(large))[1]
        return next(line for line in maps.splitlines() if line.startswith("VmFlags:"))

    with GGUFSource(large):
        assert " sr" in flags()
    large.read_bytes()
    with GGUFSource(large):
        assert " sr" not in flags()


def test_a_source_that_was_in_memory_stays_there(large: Path) -> None:
    large.read_bytes()
    read_through(large)
    assert share(large) == 1


def test_small_files_stay(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "LARGE", 1 << 30)
    read_through(large)
    assert share(large) == 1


def test_a_large_output_is_never_far_ahead_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    wait = os.fdatasync

    def counted(fd: int) -> None:
        waited.append(fd)
        wait(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    monkeypatch.setattr(passing, "_STARTED", 1 << 18)
    monkeypatch.setattr(passing, "_BEHIND", 1 << 20)
    part = bytes(1 << 18)
    for large, count in ((1 << 40, 0), (1 << 20, 8)):
        monkeypatch.setattr(passing, "LARGE", large)
        waited.clear()
        with GGUFSink(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (1 << 18, 32), "I8")]) as sink:
            for _ in range(32):
                sink.write("a", part)
            sink.commit()
        assert len(waited) == count
