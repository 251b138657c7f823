"""Writing GGUF when things go wrong: never a partial file under its name, never a touched input."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quantmill.gguf_io import (
    GGUFError,
    GGUFSink,
    GGUFSource,
    Metadata,
    OutputTensor,
    partial,
    passing,
    sink,
)
from tests.support.gguf_builder import RawTensor, gguf

ROOT = Path(__file__).parent.parent
PARTIAL = ".quantmill-partial"
OLD = b"GGUF, an older one"
ROWS = np.arange(8, dtype="<f4").reshape(2, 4)
TWO = (OutputTensor("a", (4, 2), "F32"), OutputTensor("b", (4, 2), "F32"))


def fill(sink: GGUFSink) -> None:
    for spec in sink.specs():
        sink.write(spec.name, bytes([len(spec.name)]) * spec.n_bytes)


def write_two(path: Path, split_max_bytes: int | None = None) -> None:
    with GGUFSink(path, Metadata(), TWO, split_max_bytes=split_max_bytes) as sink:
        fill(sink)
        sink.commit()


def listed(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with GGUFSink(tmp_path / "x.gguf", Metadata(), TWO) as sink:
        with pytest.raises(GGUFError, match="c: was not declared"):
            sink.write("c", ROWS)
        with pytest.raises(GGUFError, match="a: 15 bytes are not whole rows of 16"):
            sink.write("a", bytes(15))
        sink.write("a", ROWS[:1])
        with pytest.raises(GGUFError, match="a: 48 bytes written, 32 declared"):
            sink.write("a", ROWS)
        with pytest.raises(GGUFError, match="a: 16 bytes written, 32 declared"):
            sink.commit()
    assert listed(tmp_path) == []
    with pytest.raises(GGUFError, match="a: the output is not open"):
        sink.write("a", ROWS[:1])


def test_an_error_keeps_the_old_file_and_removes_the_new(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(OLD)

    def write_until_interrupted() -> None:
        with GGUFSink(tmp_path / "x.gguf", Metadata(), TWO) as sink:
            sink.write("a", ROWS)
            assert listed(tmp_path) == ["x.gguf", "x.gguf" + PARTIAL]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_until_interrupted()
    assert listed(tmp_path) == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes() == OLD
    with GGUFSink(tmp_path / "x.gguf", Metadata(), TWO) as sink:
        fill(sink)  # and no commit
    assert (tmp_path / "x.gguf").read_bytes() == OLD


def test_a_leftover_is_reused(tmp_path: Path) -> None:
    (tmp_path / ("x.gguf" + PARTIAL)).write_bytes(b"\xff" * 10_000)
    with GGUFSink(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (3,), "F32")]) as sink:
        fill(sink)
        sink.commit()
    assert listed(tmp_path) == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes() == gguf([], [RawTensor("a", (3,), 0, b"\1" * 12)])


def test_a_running_writer_is_not_disturbed(tmp_path: Path) -> None:
    with GGUFSink(tmp_path / "x.gguf", Metadata(), TWO) as sink:
        fill(sink)
        with pytest.raises(GGUFError, match="another run is writing it now"):
            write_two(tmp_path / "x.gguf")
        sink.commit()
    assert listed(tmp_path) == ["x.gguf"]
    expected = gguf([], [RawTensor(name, (4, 2), 0, b"\1" * 32) for name in "ab"])
    assert (tmp_path / "x.gguf").read_bytes() == expected


def test_a_link_in_the_way_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ("x.gguf" + PARTIAL)).symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        write_two(tmp_path / "x.gguf")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_output_through_a_link_replaces_its_target(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob").write_bytes(OLD)
    (tmp_path / "x.gguf").symlink_to("store/blob")
    write_two(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").is_symlink()
    assert (tmp_path / "store" / "blob").read_bytes().startswith(b"GGUF")


def test_output_equal_to_input(tmp_path: Path) -> None:
    original = gguf([], [RawTensor("a", (8,), 0, bytes(32))])
    model = tmp_path / "model.gguf"
    model.write_bytes(original)
    (tmp_path / "link.gguf").symlink_to(model)
    os.link(model, tmp_path / "hard.gguf")
    os.link(model, tmp_path / ("new.gguf" + PARTIAL))
    os.link(model, tmp_path / "m-00001-of-00001.gguf")
    for name in ("model.gguf", "link.gguf", "hard.gguf", "new.gguf", "../" + tmp_path.name + "/model.gguf"):
        with pytest.raises(GGUFError, match="is an input; choose another output"):
            GGUFSink(tmp_path / name, Metadata(), TWO, inputs=[model])
    with pytest.raises(GGUFError, match="is an input"):
        GGUFSink(tmp_path / "m.gguf", Metadata(), TWO, inputs=[model], split_max_bytes=1000)
    assert model.read_bytes() == original


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(GGUFError, match="is there already and is not a regular file"):
        GGUFSink(tmp_path / "directory", Metadata(), TWO)
    with pytest.raises(GGUFError, match="is there already and is not a regular file"):
        GGUFSink(os.devnull, Metadata(), TWO)
    with pytest.raises(GGUFError, match="there is no directory"):
        GGUFSink(tmp_path / "nowhere" / "x.gguf", Metadata(), TWO)


def test_too_little_space_is_found_while_declaring(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(GGUFError, match=r"x.gguf: needs \d+ bytes, \d+ are free"):
        GGUFSink(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (2 * free,), "F32")])
    assert listed(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    mounted = (
        shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("a tmpfs cannot be mounted here (needs Linux and root)")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_disk_that_fills_up_while_writing(small_disk: Path) -> None:
    path = small_disk / "x.gguf"
    path.write_bytes(OLD)
    tensors = [OutputTensor("a", (1024, 50), "F32")]

    def write_while_another_does() -> None:
        with GGUFSink(path, Metadata(), tensors) as sink:
            (small_disk / "other").write_bytes(bytes(150_000))
            sink.write("a", bytes(sink.specs()[0].n_bytes))

    with pytest.raises(GGUFError, match=r"x\.gguf: the disk is full at byte \d+ of 204896; free space"):
        write_while_another_does()
    assert listed(small_disk) == ["other", "x.gguf"]
    assert path.read_bytes() == OLD
    with pytest.raises(GGUFError, match="needs 204896 bytes, "):
        GGUFSink(path, Metadata(), tensors)


def test_a_flush_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(partial.os, "fsync", full)
    with pytest.raises(GGUFError, match="the disk is full"):
        write_two(tmp_path / "x.gguf")
    assert listed(tmp_path) == []


def test_a_system_that_does_not_write_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    for limit in ("_STARTED", "_BEHIND", "LARGE"):
        monkeypatch.setattr(passing, limit, 1)
    for number, change in enumerate([None, refuse, "absent"]):
        if change == "absent":
            monkeypatch.delattr(os, "posix_fadvise", raising=False)
        elif change is not None:
            monkeypatch.setattr(os, "posix_fadvise", change, raising=False)
        write_two(tmp_path / f"{number}.gguf")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_an_interrupt_between_renames_leaves_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def replace(partial: Path, final: Path) -> None:
        calls.append(final)
        if len(calls) == 2:
            raise KeyboardInterrupt
        os.rename(partial, final)

    monkeypatch.setattr(partial.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_two(tmp_path / "m.gguf", split_max_bytes=32)
    assert calls[0].name == "m-00002-of-00002.gguf"
    assert listed(tmp_path) == []


def test_an_interrupt_after_the_last_rename_keeps_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(directory: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sink, "sync_directory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_two(tmp_path / "x.gguf")
    assert listed(tmp_path) == ["x.gguf"]
    assert len(GGUFSource(tmp_path / "x.gguf").specs()) == 2


WRITER = """
import sys, time
from quantmill.gguf_io import GGUFSink, Metadata, OutputTensor
with GGUFSink(sys.argv[1], Metadata(), [OutputTensor("a", (1024, 1024), "F32")]) as sink:
    for row in range(1024):
        sink.write("a", bytes(4096))
        if row == 10:
            print("writing", flush=True)
        time.sleep(0.005)
    sink.commit()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on Unix")
@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, []), (signal.SIGKILL, ["x.gguf" + PARTIAL])])
def test_signals(tmp_path: Path, number: signal.Signals, left: list[str]) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x.gguf")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        time.sleep(0.02)
        process.send_signal(number)
    assert process.returncode != 0
    assert listed(tmp_path) == left
    write_two(tmp_path / "x.gguf")
    assert listed(tmp_path) == ["x.gguf"]
