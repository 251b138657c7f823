"""`quantmill quantize --compensate` end to end on the example model."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from quantmill.cli import app
from quantmill.jobs import compensate_plan
from quantmill.jobs.compensate import run
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.errors import JobError
from quantmill.jobs.finished_layers import SUFFIX
from quantmill.jobs.quantize import Job, plan_job
from quantmill.jobs.watcher import Silent
from quantmill.recipe import Recipe
from tests.support.measure_models import EXAMPLE, directory, tiny, untied

TEXT = str(EXAMPLE / "calibration.txt")
SHORT = Calibration((TEXT,), n_chunks=4)


class Watching(Silent):
    """Remembers what it is told; interrupts after a layer when asked to."""

    def __init__(self, stop_after=None):
        self.notes, self.layers, self.stop_after = [], [], stop_after

    def note(self, line):
        self.notes.append(line)

    def layer_done(self, done, n_layers):
        self.layers.append((done, n_layers))
        if done == self.stop_after:
            raise KeyboardInterrupt


def job_to(output, type="Q4_K_M", threads=1, **recipe):
    return Job(str(tiny("F16")), output, Recipe(type, **recipe), device="cpu", threads=threads)


@functools.cache
def whole_run():
    watching = Watching()
    output = directory() / "compensated.gguf"
    return run(job_to(output), SHORT, watching), watching, output


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_types_sizes_and_metadata():
    result, watching, output = whole_run()
    reader = gguf.GGUFReader(output)
    with_imatrix = Job(str(tiny("F16")), output, Recipe("Q4_K_M"), imatrix=str(EXAMPLE / "imatrix.gguf"))
    expected = {entry.name: entry.type for entry in plan_job(with_imatrix).entries}
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == expected
    assert reader.fields["quantmill.calibrate.effort"].contents() == "normal"
    assert reader.fields["quantmill.calibrate.chunks"].contents() == 4
    assert watching.layers == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert any("largest square" in note for note in watching.notes)
    assert not output.with_name(output.name + SUFFIX).exists()
    assert result.file_bytes == output.stat().st_size
    planned = compensate_plan.plan_job(job_to(directory() / "planned.gguf"), SHORT)
    assert planned == result.plan
    assert (planned.entries, planned.file_bytes) == (result.plan.entries, result.plan.file_bytes)


def test_errors_are_lower_and_what_was_left_is_said():
    result, _, _ = whole_run()
    kinds = {error.kind for error in result.errors}
    assert kinds == {
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    }
    assert all(error.fitted < 0.8 for error in result.errors)
    assert all(error.held < 1 for error in result.errors)
    assert result.plainly == ("token_embd.weight",)
    assert (result.n_chunks, result.n_held) == (4, 1)


def test_the_model_is_nearer_to_the_original_than_plain_blocks(tmp_path):
    """Logits by transformers on text that was not calibrated on, against llama-quantize's way with its imatrix."""
    import torch

    from quantmill.jobs import quantize
    from quantmill.models.model import load

    plain_path = tmp_path / "plain.gguf"
    plain_job = Job(
        str(tiny("F16")), plain_path, Recipe("Q4_K_M"), imatrix=str(EXAMPLE / "imatrix.gguf"), device="cpu"
    )
    quantize.run(plain_job)
    text = (EXAMPLE / "evaluation.txt").read_text()
    logits = []
    for path in (tiny("F16"), plain_path, whole_run()[2]):
        loaded = load(path)
        ids = torch.tensor(loaded.tokenizer.encode(text)[: 4 * 256]).view(4, 256)
        logits.append(torch.log_softmax(loaded.logits(ids), -1))
        loaded.close()
    original, *others = logits
    divergences = [float((original.exp() * (original - other)).sum(-1).mean()) for other in others]
    assert divergences[1] < 0.95 * divergences[0]  # of four chunks only


def test_threads_and_an_interrupt_change_no_byte(tmp_path):
    output = tmp_path / "resumed.gguf"
    with pytest.raises(KeyboardInterrupt):
        run(job_to(output, threads=2), SHORT, Watching(stop_after=2))
    assert not output.exists()
    with pytest.raises(JobError, match="go on with --resume"):
        run(job_to(output), SHORT, Watching())
    with pytest.raises(JobError, match="another damping"):
        run(job_to(output), Calibration((TEXT,), n_chunks=4, damping=0.02, resume=True), Watching())
    watching = Watching()
    run(job_to(output, threads=2), Calibration((TEXT,), n_chunks=4, resume=True), watching)
    assert "2 of 4 layers were done before" in watching.notes
    assert digest(output) == digest(whole_run()[2])


def test_an_output_matrix_of_its_own_is_compensated_and_nothing_else_changes(tmp_path):
    output = tmp_path / "untied.gguf"
    job = Job(str(untied()), output, Recipe("Q4_K_M"), device="cpu", threads=2)
    with pytest.raises(KeyboardInterrupt):
        run(job, SHORT, Watching(stop_after=4))
    result = run(replace(job, threads=1), replace(SHORT, resume=True), Watching())
    found = next(error for error in result.errors if error.kind == "output")
    assert (found.type, found.n_tensors) == ("Q6_K", 1)
    assert found.fitted < 0.8
    assert found.held < 1
    assert result.plainly == ("token_embd.weight",)
    tied, made = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
        for path in (whole_run()[2], output)
    )
    layers = [name for name in tied if name.startswith("blk.")]
    assert all(np.array_equal(tied[name], made[name]) for name in layers)


def test_pruned_layers_are_gone_round(tmp_path):
    output = tmp_path / "pruned.gguf"
    with pytest.raises(KeyboardInterrupt):
        run(job_to(output, "Q4_0", prune_layers=(1,)), SHORT, Watching(stop_after=3))
    watching = Watching()
    result = run(job_to(output, "Q4_0", prune_layers=(1,)), replace(SHORT, resume=True), watching)
    assert "3 of 4 layers were done before" in watching.notes
    names = {tensor.name for tensor in gguf.GGUFReader(output).tensors}
    assert "blk.2.attn_q.weight" in names
    assert "blk.3.attn_q.weight" not in names
    # the layer behind the gap makes good some of what is missing
    assert all(error.held < 1 for error in result.errors)


def test_fast_effort_takes_one_stream_and_grid_types_are_solved(tmp_path):
    fast = Calibration((TEXT,), "fast", n_chunks=4)
    result = run(job_to(tmp_path / "fast.gguf", "IQ2_XS"), fast, Watching())
    assert {error.type for error in result.errors} >= {"IQ2_XS"}
    assert all(error.shares == (0, 0) for error in result.errors)
    assert all(error.fitted < 0.85 for error in result.errors)
    assert result.plainly == ("token_embd.weight",)


@pytest.mark.slow
def test_thorough_effort_ends_with_a_polish(tmp_path):
    output = tmp_path / "thorough.gguf"
    watching = Watching()
    result = run(job_to(output, "Q2_K", threads=2), Calibration((TEXT,), "thorough", n_chunks=8), watching)
    assert any(note.startswith(("polished", "polishing did not help")) for note in watching.notes)
    assert result.paths == (output,)
    assert [path.name for path in tmp_path.iterdir()] == ["thorough.gguf"]


def test_the_python_interface_writes_the_same_bytes(tmp_path):
    import quantmill

    output = tmp_path / "api.gguf"
    quantmill.quantize_model(
        tiny("F16"), output, "Q4_K_M", calibration=TEXT, compensate=True, chunks=4, device="cpu", threads=1
    )
    assert digest(output) == digest(whole_run()[2])
    with pytest.raises(quantmill.QuantmillError, match="belong to compensate"):
        quantmill.quantize_model(tiny("F16"), output, "Q4_0", calibration=TEXT)
    with pytest.raises(quantmill.QuantmillError, match="needs a calibration text"):
        quantmill.quantize_model(tiny("F16"), output, "Q4_0", compensate=True)
    with pytest.raises(quantmill.QuantmillError, match="belong to compensate"):
        quantmill.quantize_model(tiny("F16"), output, "Q4_0", effort="fast")
    text = tmp_path / "text.txt"
    text.write_text("an input")
    with pytest.raises(quantmill.QuantmillError, match=r"text\.txt: is an input"):
        quantmill.quantize_model(
            tiny("F16"), text, "Q4_0", calibration=f"{text}=2", compensate=True, force=True
        )
    with pytest.raises(quantmill.QuantmillError, match="a Recipe has its own"):
        quantmill.quantize_model(tiny("F16"), output, Recipe("Q4_0"), tensor_types={"attn_v": "Q8_0"})


def test_what_forbids_a_polish_is_said_before_the_work(tmp_path):
    def said(job, **wish):
        watching = Watching()
        compensate_plan.plan_job(job, Calibration((TEXT,), n_chunks=4, polish=True, **wish), watching)
        return [note for note in watching.notes if "polished" in note]

    job, short = job_to(tmp_path / "x.gguf"), tmp_path / "short.txt"
    short.write_text((EXAMPLE / "calibration.txt").read_text()[:18000])
    assert said(job) == []
    assert "layers or experts are left out" in said(replace(job, recipe=Recipe("Q4_0", prune_layers=(1,))))[0]
    coarse = replace(job, source=str(tiny("Q4_0")), recipe=Recipe("Q8_0", allow_requantize=True))
    assert re.search(r"has 4\.53 bits a weight, the output 8\.53: it has nothing to teach", said(coarse)[0])
    watching = Watching()
    compensate_plan.plan_job(job, Calibration((str(short),), "thorough", n_chunks=4), watching)
    assert re.search(r"will not be polished: \d chunks of text are left, 16 are needed", watching.notes[-1])


def test_a_polish_of_less_than_the_model_is_forbidden():
    """As where layers that predict further tokens are left out."""
    from quantmill.jobs.thorough import forbidden

    plan = whole_run()[0].plan
    assert forbidden(job_to(EXAMPLE / "x.gguf"), plan, 99) is None
    fewer = replace(plan, entries=[entry for entry in plan.entries if not entry.name.startswith("blk.3.")])
    assert "tensors are left out" in (forbidden(job_to(EXAMPLE / "x.gguf"), fewer, 99) or "")


def test_a_pipe_is_not_walked_for_hours_and_then_polished(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JobError, match="pipe: is read again to polish"):
        run(job_to(tmp_path / "x.gguf"), Calibration((str(tmp_path / "pipe"),), "thorough"), Watching())


def test_a_dry_run_knows_that_importance_is_collected_on_the_way(tmp_path):
    words = ["--compensate", "--calibration", TEXT, "--chunks", "4", "--dry-run"]
    done = CliRunner().invoke(
        app, ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "IQ2_XXS", *words]
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"about [\d.]+ GiB beside the model.* minutes, \d+% of them matmuls", done.output)
    assert not list(tmp_path.iterdir())


def test_blocks_are_those_of_the_solver_and_not_plain():
    """Codes moved, and block scales with them; embeddings are llama.cpp's own."""
    from tests.support import oracle

    reader = gguf.GGUFReader(whole_run()[2])
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny("F16")).tensors}
    for tensor in reader.tensors:
        if tensor.name not in ("blk.0.attn_q.weight", "token_embd.weight"):
            continue
        rows = np.array(source[tensor.name].data, np.float32)
        same = np.array_equal(oracle.quantize(rows, tensor.tensor_type.name), tensor.data)
        assert same == (tensor.name == "token_embd.weight")


def test_what_it_takes_is_said_before_and_what_is_left_plain_after(tmp_path):
    def run_with(chunks: str) -> subprocess.CompletedProcess[str]:
        words = [
            "--compensate",
            "--calibration",
            TEXT,
            "--chunks",
            chunks,
            "--effort",
            "fast",
            "--threads",
            "1",
            "--device",
            "cpu",
        ]
        command = [sys.executable, "-m", "quantmill", "quantize", *words, "--json"]
        command += [str(tiny("F16")), str(tmp_path / "out.gguf"), "Q4_0"]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    run_with("4")  # compiling, once a machine, takes memory too
    done = run_with("16")
    said = re.search(r"largest square 256 x 256 of 8 experts; .* ([\d.]+) GiB in all", done.stderr)
    assert said is not None
    assert float(said[1]) * 2**30 == pytest.approx(json.loads(done.stdout)["peak_bytes"], rel=0.2)
    assert "without compensation: token_embd.weight" in done.stderr
