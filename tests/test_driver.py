"""Whole jobs on the example model: every block llama.cpp's own, whatever the slabs; damage named; nothing half done."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.imatrix.store import load
from quantmill.jobs.errors import JobError
from quantmill.jobs.quantize import Job, plan_job, run
from quantmill.jobs.watcher import Silent
from quantmill.qkernels import to_float32
from quantmill.qkernels.engines import Engine
from quantmill.recipe import Recipe, parse_override, parse_rule
from quantmill.recipe.slabs import slabs
from tests.support import oracle
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.recipe_models import metadata

IMATRIX = str(EXAMPLE / "imatrix.gguf")


def expected(source, entry, importance):
    """The bytes of one output tensor by llama.cpp's quantizer, expert by expert."""
    raw = source.read(entry.source)
    if not entry.converted:
        return raw
    rows = to_float32(raw, entry.source_type)
    if entry.type in ("F32", "F16"):
        return rows.astype("<f4" if entry.type == "F32" else "<f2").view(np.uint8)
    parts = np.split(rows, entry.n_matrices)
    columns = importance and importance.columns(entry.source, entry.n_cols, entry.n_matrices)
    return np.concatenate(
        [
            oracle.quantize(part, entry.type, None if columns is None else columns[i])
            for i, part in enumerate(parts)
        ]
    )


def assert_as_llama_cpp(job, result):
    importance = load(job.imatrix) if job.imatrix else None
    with open_source(job.source) as source, open_source(result.paths[0]) as written:
        for entry in result.plan.entries:
            assert np.array_equal(written.read(entry.name), expected(source, entry, importance)), entry.name
        assert written.metadata.encode() == result.plan.metadata.encode()
        assert [spec.name for spec in written.specs()] == [entry.name for entry in result.plan.entries]


@pytest.mark.parametrize("imatrix", [None, IMATRIX])
@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q2_K", "Q5_0", "Q8_0"])
def test_every_block_is_llama_cpps(tmp_path, file_type, imatrix):
    job = Job(str(tiny("F16")), tmp_path / "out.gguf", Recipe(file_type), imatrix=imatrix)
    result = run(job)
    assert_as_llama_cpp(job, result)
    assert result.paths == (tmp_path / "out.gguf",)
    assert result.file_bytes == result.plan.file_bytes == (tmp_path / "out.gguf").stat().st_size


def test_options_together(tmp_path):
    recipe = Recipe(
        "Q4_K_S",
        rules=(parse_rule("attn_v=q8_0"), parse_rule(r"blk\.1\.ffn_down=q6_k")),
        output_tensor_type="Q5_1",
        prune_layers=(0,),
        overrides=(parse_override("general.name=str:mine"),),
    )
    job = Job(str(tiny("F16")), tmp_path / "out.gguf", recipe, imatrix=IMATRIX)
    assert_as_llama_cpp(job, run(job))


def test_a_checkpoint_is_a_source_too(tmp_path):
    """From BF16 safetensors in one step: the blocks are those of the same numbers in a GGUF."""
    from_checkpoint = run(Job(str(EXAMPLE), tmp_path / "a.gguf", Recipe("Q4_K_M"), imatrix=IMATRIX))
    assert {entry.source_type for entry in from_checkpoint.plan.entries} == {"BF16", "F32"}
    assert_as_llama_cpp(
        Job(str(EXAMPLE), tmp_path / "a.gguf", Recipe("Q4_K_M"), imatrix=IMATRIX), from_checkpoint
    )


def test_slabs_and_threads_change_no_byte(tmp_path):
    outputs = []
    for i, (buffer, threads) in enumerate([(1 << 28, 1), (1 << 16, 2), (1, 3)]):
        entries = Recipe("Q4_K_M", prune_layers=(0, 1, 2)) if buffer == 1 else Recipe("Q4_K_M")
        output = tmp_path / f"{i}.gguf"
        run(Job(str(tiny("F16")), output, entries, imatrix=IMATRIX, threads=threads, max_buffer_bytes=buffer))
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]
    whole = run(
        Job(str(tiny("F16")), tmp_path / "3.gguf", Recipe("Q4_K_M", prune_layers=(0, 1, 2)), imatrix=IMATRIX)
    )
    assert outputs[2] == whole.paths[0].read_bytes()  # a row at a time


def test_requantizing_starts_from_the_decoded_blocks(tmp_path):
    job = Job(str(tiny("Q8_0")), tmp_path / "out.gguf", Recipe("Q4_0", allow_requantize=True))
    assert_as_llama_cpp(job, run(job))
    with pytest.raises(JobError, match=r"already quantized to Q8_0.*and \d+ more like it"):
        run(Job(str(tiny("Q8_0")), tmp_path / "no.gguf", Recipe("Q4_0")))


@pytest.mark.parametrize(
    "recipe", [Recipe("COPY", split_max_bytes=4 * 10**6), Recipe("Q8_0", split_max_bytes=10**6)]
)
def test_splits_hold_the_same_tensors(tmp_path, recipe):
    result = run(Job(str(tiny("F16")), tmp_path / "out.gguf", recipe))
    assert len(result.paths) > 2
    whole = run(Job(str(tiny("F16")), tmp_path / "whole.gguf", Recipe(recipe.file_type)))
    with open_source(result.paths[0]) as split, open_source(whole.paths[0]) as one:
        for spec in one.specs():
            assert np.array_equal(split.read(spec.name), one.read(spec.name))
    again = run(Job(str(result.paths[0]), tmp_path / "merged.gguf", Recipe("COPY")))
    assert again.paths[0].read_bytes() == whole.paths[0].read_bytes()


# Slabs


def test_several_quantizers_share_a_job(tmp_path, monkeypatch):
    """Slabs go to them in turns and come back in order."""
    two = (Engine("torch", "cpu", "a test"), Engine("cpu", "cpu", "a test"))
    monkeypatch.setattr("quantmill.jobs.quantize_plan.choose_engines", lambda device, *of: two)
    job = Job(
        str(tiny("F16")), tmp_path / "out.gguf", Recipe("Q4_0"), imatrix=IMATRIX, max_buffer_bytes=1 << 20
    )
    result = run(job)
    assert result.engines == two
    assert_as_llama_cpp(job, result)


def entry_of(plan, name):
    return next(entry for entry in plan.entries if entry.name == name)


def test_slabs_cover_all_rows_and_keep_experts_apart():
    plan = plan_job(Job(str(tiny("F16")), Path("unused"), Recipe("Q4_K_M"), imatrix=IMATRIX))
    entry = entry_of(plan, "blk.0.ffn_up_exps.weight")
    row_bytes = (entry.source_bytes + entry.n_bytes) // (entry.n_weights // entry.n_cols) + 4 * entry.n_cols
    found = list(slabs([[entry]], 5 * row_bytes))
    assert [slab.first_row for slab in found] == list(np.cumsum([0] + [slab.n_rows for slab in found[:-1]]))
    assert sum(slab.n_rows for slab in found) == entry.n_weights // entry.n_cols
    rows = entry.shape[1]
    assert all(
        slab.first_row // rows == slab.matrix == (slab.first_row + slab.n_rows - 1) // rows for slab in found
    )
    assert max(slab.n_rows for slab in found) == 5


# Damage


def damaged(path, type, values):
    """A model of one matrix [256, 8] holding `values` (row, column → number)."""
    rows = np.zeros((8, 256), np.float32)
    for place, number in values.items():
        rows[place] = number
    raw = (
        rows.astype({"F32": "<f4", "F16": "<f2"}[type])
        if type != "BF16"
        else rows.view("<u2")[:, 1::2].copy()
    )
    tensors = [OutputTensor("output.weight", (256, 8), type)]
    with GGUFSink(path, metadata(n_layer=1), tensors) as sink:
        sink.write("output.weight", raw.view(np.uint8))
        sink.commit()
    return str(path)


@pytest.mark.parametrize("file_type", ["Q4_K", "COPY", "Q8_0", "BF16"])
@pytest.mark.parametrize(("type", "number"), [("F32", np.nan), ("F16", np.inf), ("BF16", -np.inf)])
def test_weights_that_are_no_numbers_are_named(tmp_path, type, number, file_type):
    source = damaged(tmp_path / "in.gguf", type, {(5, 77): number})
    with pytest.raises(JobError, match=rf"output\.weight: {number} in row 5, column 77"):
        run(Job(source, tmp_path / "out.gguf", Recipe(file_type, pure=True), max_buffer_bytes=10_000))
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.parametrize("file_type", ["Q4_K", "Q8_0", "F16"])
def test_weights_too_large_for_a_type_are_named(tmp_path, file_type):
    source = damaged(tmp_path / "in.gguf", "F32", {(6, 0): 3e38, (7, 0): 3e38})
    with pytest.raises(JobError, match=r"output\.weight: row 6: 3e\+38 in column 0 is too large for"):
        run(Job(source, tmp_path / "out.gguf", Recipe(file_type, pure=True), max_buffer_bytes=100_000))
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_damaged_scales_are_not_copied(tmp_path):
    blocks = np.zeros((8, 34), np.uint8)
    blocks[3, 0:2] = 0xFF  # an fp16 NaN
    with GGUFSink(
        tmp_path / "in.gguf", metadata(n_layer=1), [OutputTensor("output.weight", (32, 8), "Q8_0")]
    ) as sink:
        sink.write("output.weight", blocks)
        sink.commit()
    with pytest.raises(JobError, match=r"output\.weight: rows 0 to 7 hold a scale that is NaN"):
        run(Job(str(tmp_path / "in.gguf"), tmp_path / "out.gguf", Recipe("COPY")))


def test_the_input_is_never_the_output(tmp_path):
    model = tmp_path / "in.gguf"
    model.write_bytes(tiny("F16").read_bytes())
    with pytest.raises(JobError, match="is an input"):
        run(Job(str(model), model, Recipe("Q8_0")))
    (tmp_path / "link.gguf").symlink_to(model)
    with pytest.raises(JobError, match="is an input"):
        run(Job(str(model), tmp_path / "link.gguf", Recipe("Q8_0")))
    assert model.read_bytes() == tiny("F16").read_bytes()


# What is watched and what is left behind


class Recorder(Silent):
    def __init__(self):
        self.plans, self.done = [], {}

    def planned(self, plan):
        self.plans.append(plan)

    def progressed(self, amount, what=""):
        self.done[what] = self.done.get(what, 0) + amount


def test_progress_adds_up(tmp_path):
    seen = Recorder()
    result = run(
        Job(str(tiny("F16")), tmp_path / "out.gguf", Recipe("Q4_K_M"), max_buffer_bytes=1 << 20), seen
    )
    assert seen.plans == [result.plan]
    assert seen.done == {entry.name: entry.source_bytes for entry in result.plan.entries}
    assert set(result.step_seconds) == {"read", "quantize", "write"}
    assert all(0 < seconds < 3 * result.seconds for seconds in result.step_seconds.values())


def test_no_thread_outlives_a_failure(tmp_path):
    source = damaged(tmp_path / "in.gguf", "F32", {(0, 0): np.nan})
    before = threading.active_count()
    with pytest.raises(JobError):
        run(Job(source, tmp_path / "out.gguf", Recipe("Q8_0"), max_buffer_bytes=1))
    assert threading.active_count() == before


SLOW_RUN = """
import sys, time, signal
from quantmill import cli
from quantmill.gguf_io import GGUFSink
write_rows = GGUFSink.write_rows
def slowly(self, name, first_row, data):
    time.sleep(0.05)
    print('writing', flush=True)
    write_rows(self, name, first_row, data)
GGUFSink.write_rows = slowly
sys.exit(cli.main(['quantize', sys.argv[1], sys.argv[2], 'Q8_0']))
"""


def interrupted(tmp_path, number):
    """Start a slow run, send it a signal while it writes; its exit code, stderr and what it left."""
    output = tmp_path / "out.gguf"
    command = [sys.executable, "-c", SLOW_RUN, str(tiny("F16")), str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "writing\n"
    started = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    return process.returncode, errors, sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(tmp_path, number):
    code, errors, left = interrupted(tmp_path, number)
    assert (code, left) == (130, [])
    assert errors.splitlines()[-1] == "error: interrupted; nothing unfinished is left"
    assert "Traceback" not in errors


def test_a_kill_leaves_no_file_under_the_final_name(tmp_path):
    code, _, left = interrupted(tmp_path, signal.SIGKILL)
    assert (code, left) == (-signal.SIGKILL, ["out.gguf.quantmill-partial"])
    run(Job(str(tiny("F16")), tmp_path / "out.gguf", Recipe("Q8_0")))  # the leftover is in nobody's way
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
