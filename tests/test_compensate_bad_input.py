"""`quantmill quantize --compensate` where something is wrong: wishes, texts, numbers, disks, devices."""

import errno
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from quantmill.cli import app
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.partial import PartialFile
from quantmill.imatrix.matrix import ImatrixError
from quantmill.jobs import compensate, compensate_plan
from quantmill.jobs.compensate import run
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.errors import JobError
from quantmill.jobs.finished_layers import finished_path
from quantmill.models.errors import ModelError
from quantmill.qkernels.types import DeviceFault
from tests.support.measure_models import EXAMPLE, tiny, written_again
from tests.test_compensate import SHORT, TEXT, Watching, job_to


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (lambda: Calibration(()), "needs a calibration text"),
        (lambda: Calibration((TEXT,), "slow"), "--effort slow"),
        (lambda: Calibration((TEXT,), alpha=1.5), "--alpha 1.5"),
        (lambda: Calibration((TEXT,), alpha=float("nan")), "--alpha nan"),
        (lambda: Calibration((TEXT,), "fast", alpha=0.5), "--alpha 0.5: fast effort does not look"),
        (lambda: Calibration((TEXT,), damping=0.0), "--damping 0.0"),
        (lambda: Calibration((TEXT,), n_chunks=3), "--chunks 3: .* at least 4"),
        (lambda: Calibration((TEXT,), n_chunks=-1), "--chunks -1: .* at least 4"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(wish, message):
    with pytest.raises(JobError, match=message):
        wish()


def test_a_text_that_is_too_short(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short.\n")
    with pytest.raises(ImatrixError, match="tokens"):
        run(job_to(tmp_path / "x.gguf"), Calibration((str(text),)), Watching())
    text.write_text((EXAMPLE / "calibration.txt").read_text()[:4500])
    with pytest.raises(
        ImatrixError, match=r"tokens; 4 chunks of 512 need at least 2048: give a longer text$"
    ):
        run(job_to(tmp_path / "x.gguf"), Calibration((str(text),)), Watching())
    with pytest.raises(JobError, match="at least 4"):
        run(job_to(tmp_path / "x.gguf"), Calibration((str(text), f"{text}=2")), Watching())


def test_a_text_with_fewer_chunks_than_wanted_is_said(tmp_path):
    text, watching = tmp_path / "text.txt", Watching()
    text.write_text((EXAMPLE / "calibration.txt").read_text()[:18000])
    compensate_plan.plan_job(job_to(tmp_path / "x.gguf"), Calibration((str(text),), n_chunks=99), watching)
    tokens, less = map(
        int, re.match(r"(\d+) tokens \(the text has (\d+) chunks less", watching.notes[0]).groups()
    )
    assert tokens + 512 * less == 512 * 99


@pytest.mark.parametrize("n_written", [0, 1])
def test_a_full_disk_says_what_is_kept_and_no_output_is_left(tmp_path, monkeypatch, n_written):
    whole, layers = PartialFile.write_at, finished_path(tmp_path / "x.gguf")
    job, calibration = job_to(tmp_path / "x.gguf", "Q4_0"), Calibration((TEXT,), "fast", n_chunks=4)

    def full(self, offset, data):
        if self.final == layers / f"layer-000{n_written}.npz":
            raise GGUFError(f"{self.final}: {os.strerror(errno.ENOSPC)}")
        whole(self, offset, data)

    monkeypatch.setattr(PartialFile, "write_at", full)
    told = (
        f"finished layers are in {layers}: go on with --resume$"
        if n_written
        else "no layer was finished yet$"
    )
    with pytest.raises(GGUFError, match=f"No space left on device; {told}"):
        run(job, calibration, Watching())
    assert not job.output.exists()
    assert layers.exists() == bool(n_written)
    monkeypatch.setattr(PartialFile, "write_at", whole)
    watching = Watching()
    run(job, replace(calibration, resume=bool(n_written)), watching)
    assert ("1 of 4 layers were done before" in watching.notes) == bool(n_written)
    assert not layers.exists()


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.3.ffn_norm.weight", "blk.3.ffn_down_exps.weight"])
def test_a_damaged_weight_is_found_before_the_walk(tmp_path, name):
    def damaged(spec, raw):
        if spec.name == name:
            raw.reshape(-1).view(np.float32 if spec.type == "F32" else np.float16)[7] = np.nan
        return raw

    written_again(tiny("F16"), tmp_path / "damaged.gguf", damaged)
    job, watching = replace(job_to(tmp_path / "x.gguf"), source=str(tmp_path / "damaged.gguf")), Watching()
    with pytest.raises(JobError, match=rf"^{re.escape(name)}: nan in row 0, column 7; the model is damaged"):
        run(job, Calibration((TEXT,), n_chunks=4), watching)
    assert watching.layers == []
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def test_what_no_walk_comes_to_is_quantized_before_it(tmp_path, monkeypatch):
    """It is what may be impossible, hours later."""
    written = []

    def walk(state, *others):
        written.extend(sorted(state.done))
        raise ModelError("enough")

    monkeypatch.setattr(compensate, "_walked", walk)
    with pytest.raises(ModelError, match="enough"):
        run(job_to(tmp_path / "x.gguf"), SHORT, Watching())
    assert written == ["token_embd.weight"]


def test_the_text_and_the_wish_go_together():
    model = str(tiny("F16"))
    wishes = ["--effort fast", "--chunks 9", "--alpha 0.5", "--damping 0.01", "--resume", "--keep-norms"]
    for arguments in (["--calibration", TEXT], ["--compensate"], *(wish.split() for wish in wishes)):
        done = CliRunner().invoke(app, ["quantize", "--dry-run", model, "Q4_0", *arguments])
        assert done.exit_code == 2
        assert arguments[0] in done.output


def test_numbers_that_overflow_in_the_walk_name_layer_and_chunk(tmp_path):
    """All weights are finite; what comes behind a norm of 1e38 is not."""

    def large(spec, raw):
        is_norm = spec.name == "blk.1.ffn_norm.weight"
        return np.full(raw.size // 4, 1e38, np.float32).view(np.uint8) if is_norm else raw

    written_again(tiny("F16"), tmp_path / "large.gguf", large)
    output = tmp_path / "x.gguf"
    job = replace(job_to(output, "Q4_0"), source=str(tmp_path / "large.gguf"))
    with pytest.raises(
        ModelError, match=r"blk\.1\.ffn_gate_exps\.weight: .* not finite in chunk 1 \(layer 1\)"
    ):
        run(job, Calibration((TEXT,), "fast", n_chunks=4), Watching())
    assert [path.name for path in tmp_path.iterdir()] == ["large.gguf"]  # it would come again


def test_a_device_with_wrong_bytes_has_its_work_done_again(tmp_path, monkeypatch):
    asked, output, watching = [], tmp_path / "out.gguf", Watching()

    def first_fails(job, calibration, watcher):
        asked.append((job.device, calibration.resume))
        if len(asked) == 1:
            finished_path(output).mkdir()
            raise DeviceFault("Q4_K on cuda: 1 of 768 blocks of the model are not the CPU's")
        assert not finished_path(output).exists()
        return "made"

    monkeypatch.setattr(compensate, "_run", first_fails)
    warned = []
    watching.warn = warned.append
    job = replace(job_to(output), device="auto")
    assert run(job, replace(SHORT, resume=True), watching) == "made"
    assert asked == [("auto", True), ("cpu", False)]
    assert "the CPU begins again" in warned[0]
    asked.clear()
    with pytest.raises(DeviceFault):
        run(replace(job, strict_device=True), SHORT, watching)
    assert len(asked) == 1
