"""Inputs that are no files, numbers that are none, disks that take nothing: one line before the work, naming what."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantmill import cli
from quantmill.calibrate.errors import CalibrationError
from quantmill.calibrate.teacher import HiddenStates
from quantmill.calibrate.weights import Subject, sampled_errors
from quantmill.gguf_io import GGUFError, TensorSpec, filesystem
from quantmill.gguf_io.filesystem import digest, open_regular, read_whole
from quantmill.models.quiet import quiet_transformers
from quantmill.qkernels.engines import choose_engines
from quantmill.qkernels.rows import row_quantizers
from tests.support.measure_models import EXAMPLE, tiny

unix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes by name")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copyfile(tiny("F16"), tmp_path / "m.gguf")
    shutil.copyfile(tiny("Q8_0"), tmp_path / "q.gguf")
    shutil.copyfile(EXAMPLE / "imatrix.gguf", tmp_path / "im.gguf")
    (tmp_path / "text.txt").write_text("words " * 6000)
    os.mkfifo(tmp_path / "pipe")
    for folder, name in (("hf", "config.json"), ("weights", "model.safetensors")):
        shutil.copytree(
            EXAMPLE, tmp_path / folder, ignore=shutil.ignore_patterns(name, "imatrix.gguf", "*.txt")
        )
        os.mkfifo(tmp_path / folder / name)
    return tmp_path


NO_FILES = [
    ("imatrix @m.gguf -f /dev/zero -o @x.gguf", "/dev/zero: neither a file nor a pipe"),
    ("evaluate @m.gguf -f /dev/zero", "/dev/zero: neither a file nor a pipe"),
    ("evaluate @m.gguf --hellaswag /dev/zero", "/dev/zero: not a regular file"),
    ("evaluate @q.gguf --base-file @pipe", "pipe: not a regular file"),
    ("polish @q.gguf --base @m.gguf --calibration /dev/zero", "/dev/zero: not a regular file"),
    ("polish @q.gguf --base @m.gguf --calibration @pipe", "pipe: not a regular file"),
    (
        "quantize --target-size 6M --calibration /dev/zero @m.gguf @x.gguf",
        "/dev/zero: neither a file nor a pipe",
    ),
    ("quantize --compensate --calibration /dev/zero @m.gguf @x.gguf Q4_0", "neither a file nor a pipe"),
    ("quantize --imatrix @pipe @m.gguf @x.gguf Q4_K", "pipe: not a regular file"),
    ("quantize --recipe /dev/zero @m.gguf @x.gguf", "/dev/zero: neither a file nor a pipe"),
    ("quantize --tensor-type-file /dev/zero @m.gguf @x.gguf Q4_K", "/dev/zero: neither a file nor a pipe"),
    ("quantize @pipe @x.gguf Q4_0", "pipe: not a regular file"),
    ("imatrix merge @pipe @im.gguf -o @x.gguf", "pipe: not a regular file"),
    ("imatrix stats @pipe", "pipe: not a regular file"),
    ("report /dev/zero -o @page", "/dev/zero: neither a file nor a pipe"),
    ("recipe @pipe", "pipe: not a regular file"),
    ("squeeze @m.gguf --types Q4_0 --calibration @pipe -o @out", "pipe: not a regular file"),
    ("convert @hf @x.gguf", "config.json: not a regular file"),
    ("convert @weights @x.gguf", "model.safetensors: not a regular file"),
]
# What may come from a pipe (`<(zcat text.gz)`) is waited for only while somebody writes.
PIPES = [
    "imatrix @m.gguf -f @pipe -o @x.gguf",
    "evaluate @m.gguf -f @pipe",
    "quantize --target-size 6M --calibration @pipe @m.gguf @x.gguf",
    "quantize --compensate --calibration @pipe @m.gguf @x.gguf Q4_0",
    "quantize --recipe @pipe @m.gguf @x.gguf",
    "quantize --tensor-type-file @pipe @m.gguf @x.gguf Q4_K",
    "report @pipe -o @page",
]


@unix
@pytest.mark.parametrize(("line", "message"), NO_FILES)
def test_what_is_no_file_is_refused_and_never_waited_for(
    capsys: pytest.CaptureFixture[str], place: Path, line: str, message: str
) -> None:
    assert cli.main(line.replace("@", str(place) + os.sep).split()) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (place / "x.gguf").exists()


@unix
@pytest.mark.parametrize("line", PIPES)
def test_a_pipe_into_which_nobody_writes_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(filesystem, "_PATIENCE_S", 0.1)
    assert cli.main(line.replace("@", str(place) + os.sep).split()) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "pipe: a pipe into which nothing was written" in last
    assert not (place / "x.gguf").exists()


@unix
def test_a_writer_that_is_there_may_take_its_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_PATIENCE_S", 1.0)
    script = f"exec > {place}/pipe; sleep 1.5; echo one; sleep 0.5; echo two"
    with subprocess.Popen(["sh", "-c", script]):
        assert read_whole(place / "pipe") == b"one\ntwo\n"


@unix
def test_a_text_may_come_from_a_pipe_and_its_digest_is_that_of_the_text(place: Path) -> None:
    writer = threading.Thread(target=(place / "pipe").write_bytes, args=((place / "text.txt").read_bytes(),))
    writer.start()
    line = f"evaluate {place}/m.gguf -f {place}/pipe -c 16 --chunks 2 -t 1 -o {place}/r.json"
    assert cli.main(line.split()) == 0
    writer.join()
    record = json.loads((place / "r.json").read_text())
    assert record["text"]["sha256"] == hashlib.sha256((place / "text.txt").read_bytes()).hexdigest()


@unix
def test_reading(place: Path) -> None:
    assert digest([place / "text.txt"]) == hashlib.sha256((place / "text.txt").read_bytes()).hexdigest()
    for read in (lambda path: digest([path]), open_regular):
        for path in (place / "pipe", Path("/dev/zero")):
            with pytest.raises(GGUFError, match="not a regular file"):
                read(path)
    with pytest.raises(GGUFError, match="neither a file nor a pipe"):
        read_whole(Path(os.devnull))
    with pytest.raises(IsADirectoryError):
        read_whole(place)


@unix
def test_an_output_that_is_a_pipe_without_a_name(place: Path) -> None:
    command = [sys.executable, "-m", "quantmill", "quantize", str(place / "m.gguf"), "/dev/stdout", "Q8_0"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == (
        b"error: /dev/stdout: is there already and is not a regular file; choose another output\n"
    )


WRONG = [
    ("quantize --compensate --calibration @text.txt --alpha nan @m.gguf @x.gguf Q4_0", "--alpha nan"),
    ("quantize --compensate --calibration @text.txt --damping -1 @m.gguf @x.gguf Q4_0", "--damping -1.0"),
    ("quantize --compensate --calibration @text.txt --effort norml @m.gguf @x.gguf Q4_0", "--effort norml"),
    ("quantize --compensate --calibration @text.txt=nan @m.gguf @x.gguf Q4_0", "text.txt=nan: the weight"),
    ("quantize --target-size 5M --calibration @text.txt=0 @m.gguf @x.gguf", "text.txt=0.0: the weight"),
    (
        "imatrix @m.gguf -f @text.txt=-1 -o @x.gguf",
        "text.txt=-1.0: the weight of a text must be a positive number",
    ),
    ("imatrix @m.gguf -f @text.txt=inf -o @x.gguf", "text.txt=inf: the weight"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_numbers_that_are_none_are_wrong_usage(
    capsys: pytest.CaptureFixture[str], place: Path, line: str, message: str
) -> None:
    assert cli.main(line.replace("@", str(place) + os.sep).split()) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err


def test_space_for_a_wanted_size_is_looked_for_before_types_are_measured(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quantmill.commands.allocation

    monkeypatch.setattr(quantmill.commands.allocation, "find", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 4 << 20))  # type: ignore[attr-defined]
    line = f"quantize --target-size 5M {place}/m.gguf {place}/x.gguf"
    assert cli.main(line.split()) == 1
    assert "x.gguf: needs 5000000 bytes, 4194304 are free" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    "line",
    [
        "polish @q.gguf --base @m.gguf --calibration @text.txt --chunks 10 -o @x.gguf",
        "quantize --compensate --calibration @text.txt --chunks 4 @m.gguf @x.gguf Q8_0",
    ],
)
def test_space_for_what_is_kept_beside_the_output_is_looked_for_too(
    capsys: pytest.CaptureFixture[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    more: tuple[str, ...],
) -> None:
    free = (place / "q.gguf").stat().st_size + (1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, free))  # type: ignore[attr-defined]
    before = sorted(place.iterdir())
    assert cli.main([*line.replace("@", str(place) + os.sep).split(), *more]) == 1
    found = re.search(
        r"x\.gguf: needs (\d+) bytes and (\d+) beside it until it is done, (\d+) are free",
        capsys.readouterr().err,
    )
    assert found, line
    needed, kept, there = map(int, found.groups())
    assert needed < there == free < needed + kept
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize("file_type", ["F16", "COPY"])
def test_a_type_without_codes_is_not_compensated(
    capsys: pytest.CaptureFixture[str], place: Path, file_type: str, more: tuple[str, ...]
) -> None:
    words = ["--compensate", "--calibration", str(place / "text.txt"), "--chunks", "4", *more]
    assert cli.main(["quantize", *words, str(place / "m.gguf"), str(place / "x.gguf"), file_type]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(
        f"{file_type}: no matrix gets codes here that compensation could choose; leave out --compensate, or name a "
        "quantized type"
    )
    assert not (place / "x.gguf").exists()


class _Damaged:
    """A source of one tensor, F32 [2, 32], with a NaN."""

    def read(self, name: str, first_row: int = 0, n_rows: int | None = None) -> np.ndarray:
        rows = np.ones((2, 32), np.float32)
        rows[1, 3] = np.nan
        return rows.view(np.uint8)


def test_a_value_that_is_not_finite_is_named_by_its_tensor() -> None:
    source: Any = _Damaged()
    subject = Subject(TensorSpec("blk.1.attn_v.weight", (32, 2), "F32", 0, 0), None)
    (quantizer,) = row_quantizers(choose_engines("cpu")[0], 1)
    with pytest.raises(CalibrationError, match=r"blk\.1\.attn_v\.weight: holds values that are not finite"):
        sampled_errors(source, subject, ["Q4_0"], quantizer)


def test_hidden_states_that_cannot_be_kept_name_their_file(tmp_path: Path) -> None:
    states = HiddenStates(tmp_path / "none" / "teacher.f32", 2, 4)
    with pytest.raises(GGUFError, match=r"teacher\.f32: cannot be written: No such file"):
        states.append(torch.zeros(1, 2, 4))


def test_transformers_keeps_its_log_to_itself_while_it_works_for_us() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        with quiet_transformers():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)


def test_an_interrupted_squeeze_gives_advice_that_it_can_follow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stage's own, an option --resume, is none of its options."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    from quantmill.jobs import squeeze

    def interrupted(ray: object) -> None:
        raise KeyboardInterrupt("go on with --resume")

    made = SimpleNamespace(
        check=lambda: None,
        require_room=lambda: None,
        memory=SimpleNamespace(held=nullcontext, directory=tmp_path),
        run=interrupted,
    )
    monkeypatch.setattr(squeeze, "_Squeeze", lambda *_: made)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on from what is in") as error:
        squeeze.run(SimpleNamespace(ray=None))  # type: ignore[arg-type]
    assert "--resume" not in str(error.value)
