"""The output rule itself: what may be written where, judged before a byte is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from quantmill.gguf_io import GGUFError, locks, partial
from quantmill.gguf_io.kinds import IMATRIX, LOGITS, MODEL, containing, content_of, json_object, starting_with
from quantmill.gguf_io.outputs import check_directory, check_output
from quantmill.gguf_io.partial import PartialFile, partial_path, write_whole

ROOT = Path(__file__).parent.parent
IMATRIX_FILE = ROOT / "tests" / "data" / "imatrix" / "a.gguf"
RECORD = json_object("a record", "format", "models")


def refused(path: Path, kind: object, inputs: list[Path], **options: object) -> str:
    with pytest.raises(GGUFError) as raised:
        check_output(path, kind, inputs, **options)  # type: ignore[arg-type]
    return str(raised.value)


@pytest.mark.parametrize("force", [False, True])
def test_an_output_is_no_input_under_any_name(tmp_path: Path, force: bool) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF of some kind")
    (tmp_path / "link.gguf").symlink_to("model.gguf")
    os.link(model, tmp_path / "hard.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blob")
    (tmp_path / "blob").write_bytes(b"weights")
    for n in (1, 2):
        (tmp_path / f"m-0000{n}-of-00002.gguf").write_bytes(b"GGUF")
    inputs = [
        tmp_path / name for name in ("other", "model.gguf", "folder", "snapshot", "m-00001-of-00002.gguf")
    ]
    for name in (
        "model.gguf", "link.gguf", "hard.gguf", "folder/../model.gguf", "folder/config.json", "blob",
        "snapshot/model.safetensors", "m-00002-of-00002.gguf",
    ):  # fmt: skip
        assert "is an input; choose another output" in refused(tmp_path / name, MODEL, inputs, force=force)
    os.rename(model, tmp_path / "new.gguf.quantmill-partial")
    inputs[1] = tmp_path / "new.gguf.quantmill-partial"
    assert "is an input" in refused(tmp_path / "new.gguf", MODEL, inputs, force=force)


def test_results_in_a_models_directory_are_no_part_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "out.gguf").write_bytes(b"GGUF")
    assert check_output(tmp_path / "out.gguf", MODEL, [tmp_path]).replaces
    assert not check_output(tmp_path / "new.gguf", MODEL, [tmp_path]).replaces


def test_another_kind_is_replaced_only_by_force(tmp_path: Path) -> None:
    contents = {
        "model": b"GGUF" + bytes(100),
        "imatrix": IMATRIX_FILE.read_bytes(),
        "legacy": (IMATRIX_FILE.parent / "a.dat").read_bytes(),
        "logits": b"_logits_" + bytes(40),
        "record": json.dumps({"format": 1, "models": []}).encode(),
        "json": b'{"architectures": []}',
        "text": "naïve words\n".encode(),
        "table": b"name,bytes\nx,1\n",
        "page": b"<!doctype html><title>mine</title>",
        "ours": b"<!doctype html><meta name=generator content=quantmill>",
        "binary": bytes(range(256)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    kinds = {
        MODEL: {"model"},
        IMATRIX: {"imatrix", "legacy"},
        LOGITS: {"logits"},
        RECORD: {"record"},
        starting_with("a table", b"name,bytes"): {"table"},
        containing("our page", b"<!doctype", b"quantmill"): {"ours"},
    }
    for kind, own in kinds.items():
        for name in contents:
            path = tmp_path / name
            if name in own:
                assert "is replaced: it is there already" in check_output(path, kind).warnings[0]
            else:
                line = refused(path, kind, [])
                assert f"is not {kind.name} but {content_of(path)}; " in line
                assert "--force" in line
                assert "is replaced" in check_output(path, kind, force=True).warnings[0]
            assert path.read_bytes() == contents[name]
    assert [content_of(tmp_path / name) for name in ("json", "text", "binary")] == [
        "a JSON file", "a text", "a binary file"
    ]  # fmt: skip
    (tmp_path / "empty").touch()
    assert check_output(tmp_path / "empty", MODEL).replaces
    assert check_output(tmp_path / "new", MODEL).warnings == ()


def test_two_outputs_of_one_run(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    first = check_output(tmp_path / "x", MODEL)
    assert "is to be written twice" in refused(tmp_path / "x", LOGITS, [], others=[first])
    assert "is to be written twice" in refused(tmp_path / "link", LOGITS, [], others=[first])


def test_what_cannot_be_written_is_found_before(tmp_path: Path) -> None:
    protected = tmp_path / "protected.gguf"
    protected.write_bytes(b"GGUF")
    protected.chmod(0o444)
    assert "write-protected" in refused(protected, MODEL, [], force=True)
    assert "there is no directory" in refused(tmp_path / "no" / "x", MODEL, [])
    assert "not a regular file" in refused(tmp_path, MODEL, [])
    free = shutil.disk_usage(tmp_path).free
    assert "free on its disk" in refused(tmp_path / "x", MODEL, [], n_bytes=2 * free)
    with pytest.raises(GGUFError, match="is no directory"):
        check_directory(protected / "deep" / "er")
    check_directory(tmp_path / "deep" / "er")
    with pytest.raises((GGUFError, OSError), match="File name too long"):
        check_output(tmp_path / ("n" * 256), MODEL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["protected.gguf"]


def test_names_up_to_the_file_systems_limit(tmp_path: Path) -> None:
    """`../shared/cases/long-file-name`, in letters of one byte and of more."""
    limit = os.pathconf(tmp_path, "PC_NAME_MAX")
    for name in ("n" * 240 + ".gguf", "n" * limit, "ü" * (limit // 2), "n" * (limit - 18)):
        path = tmp_path / name
        assert len(os.fsencode(partial_path(path).name)) <= limit
        write_whole(path, b"whole")
        assert path.read_bytes() == b"whole"
        assert list(tmp_path.iterdir()) == [path]
        path.unlink()
    longest = [partial_path(tmp_path / ("n" * (limit - 1) + last)) for last in "ab"]
    assert longest[0] != longest[1]
    assert partial_path(tmp_path / "x").name == "x.quantmill-partial"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES])
def test_a_directory_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """`../shared/cases/sync-directory`: SMB and FUSE answer EINVAL; the file is complete all the same."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_file_systems_that_know_fewer_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    real = os.ftruncate

    def only_shorter(fd: int, size: int) -> None:
        if size > os.fstat(fd).st_size:
            unknown()
        real(fd, size)

    monkeypatch.setattr(os, "fsync", unknown)
    monkeypatch.setattr(os, "fchmod", unknown)
    monkeypatch.setattr(os, "ftruncate", only_shorter)
    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    (tmp_path / "x").write_bytes(b"old")
    with PartialFile(tmp_path / "x", 10) as file:
        file.write_at(0, memoryview(b"new"))
        file.finish()
    assert (tmp_path / "x").read_bytes() == b"new" + bytes(7)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM])
def test_a_name_that_cannot_be_renamed_onto_is_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A mount point, as containers have them; a foreign file in /tmp."""

    def replace(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "x").write_bytes(b"older and longer")
    number_of_file = (tmp_path / "x").stat().st_ino
    write_whole(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert (tmp_path / "x").stat().st_ino == number_of_file
    assert len(list(tmp_path.iterdir())) == 1


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for mode in (0o600, 0o640, 0o755):
        path.write_bytes(b"old")
        path.chmod(mode)
        with PartialFile(path, 3) as file:
            assert stat.S_IMODE(partial_path(path).stat().st_mode) == mode
            file.finish()
        assert stat.S_IMODE(path.stat().st_mode) == mode
    umask = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", b"x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


IN_PLACE = """
import hashlib, os, sys  # all that is needed, for nobody may not read where Python lies
from pathlib import Path
from quantmill.gguf_io.outputs import check_output
from quantmill.gguf_io.partial import write_whole
from quantmill.gguf_io.kinds import MODEL
os.setgid(65534); os.setuid(65534)
try:
    output = check_output(sys.argv[1], MODEL)
    print(*output.warnings, sep="\\n")
    write_whole(output.final, b"GGUF, new")
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become nobody")
def test_a_writable_file_in_a_directory_that_is_not(tmp_path: Path) -> None:
    place = Path("/tmp") / f"quantmill-{os.getpid()}"  # pytest's own directories are closed to others
    place.mkdir()
    temporary = place / "temporary"
    temporary.mkdir()
    temporary.chmod(0o777)
    try:
        path = place / "x.gguf"

        def run() -> str:
            command = [sys.executable, "-c", IN_PLACE, str(path)]
            environment = {**os.environ, "TMPDIR": str(temporary)}
            return subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT
            ).stdout

        assert f"{place} cannot be written; choose another output" in run()
        path.write_bytes(b"GGUF, old and longer")
        assert "cannot be written (Permission denied)" in run()
        path.chmod(0o666)
        number = path.stat().st_ino
        assert f"is completed in {temporary} and copied in place" in run()
        assert (path.read_bytes(), path.stat().st_ino) == (b"GGUF, new", number)
        assert list(temporary.iterdir()) == []
    finally:
        shutil.rmtree(place)


def test_a_copy_that_fails_keeps_the_complete_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "replace", fails)
    monkeypatch.setattr(partial, "copy_content", fails)
    with pytest.raises(
        GGUFError, match=r"cannot be written \(.*\); the complete file is .*x\.quantmill-partial"
    ):
        write_whole(tmp_path / "x", b"whole")
    assert (tmp_path / "x.quantmill-partial").read_bytes() == b"whole"
    assert not (tmp_path / "x").exists()
