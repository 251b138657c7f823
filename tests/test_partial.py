"""A file that is being made: nothing is left of one that is not kept."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from quantmill.gguf_io.partial import PartialFile


def test_an_interrupt_at_any_step_of_its_making_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a signal comes during a call, Python raises right behind it, before the result is kept."""
    import quantmill.gguf_io.partial as module

    for owner, name in ((os, "open"), (os, "ftruncate"), (fcntl, "flock"), (module, "is_at")):
        real = getattr(owner, name)

        def interrupted(*arguments: object, real: object = real) -> object:
            real(*arguments)  # type: ignore[operator]
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                PartialFile(tmp_path / "x", 3)
        assert list(tmp_path.iterdir()) == [], name


def test_a_file_that_nobody_keeps_is_removed(tmp_path: Path) -> None:
    PartialFile(tmp_path / "x", 3)
    assert list(tmp_path.iterdir()) == []
