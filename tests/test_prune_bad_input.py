"""Pruning that is measured, where something is wrong: wishes that contradict, short texts, numbers, outputs."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill.calibrate.errors import CalibrationError
from quantmill.cli import main
from quantmill.imatrix.text import Text
from quantmill.jobs.errors import JobError
from quantmill.jobs.prune import run
from quantmill.jobs.prune_request import Request
from quantmill.recipe.prune_experts import Share
from tests.support.measure_models import written_again
from tests.test_prune_measured import MODEL, Counting, cache, request, text  # noqa: F401


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--prune-layers", "auto:1"], 2, "needs a text to measure on"),
        (["--prune-layers", "auto:0"], 2, "expected auto:N"),
        (["--prune-layers", "auto:4", "--calibration", "TEXT"], 1, "the model has 4 layers, at most 3"),
        (["--prune-layers", "0,1,2,3", "--calibration", "TEXT"], 1, "no layer would remain"),
        (["--prune-layers", "9", "--calibration", "TEXT"], 1, "the model has no layer 9"),
        (["--prune-experts", "7", "--calibration", "TEXT"], 1, "at most 6 can leave"),
        (["--prune-experts", "9"], 1, "the model has 8 experts"),
        (["--prune-experts", "0.25", "--max-damage", "0.1"], 2, "belongs to pruning that is measured"),
        (["--prune-layers", "1", "--calibration", "TEXT", "--max-damage", "much"], 2, "--max-damage much"),
        (["--prune-layers", "1", "--calibration", "TEXT", "--merge"], 2, "--merge is about experts"),
        (
            ["--prune-experts", "2", "--calibration", "TEXT", "--expert-criterion", "reap"],
            2,
            "did you mean REAP",
        ),
        (["--prune-layers", "1", "--calibration", "TEXT", "--polish"], 2, "--polish wants the original"),
        (["--prune-layers", "auto:1", "--calibration", "TEXT", "--compensate"], 2, "with COPY first"),
        (
            ["--prune-layers", "1", "--max-damage", "1", "--calibration", "TEXT", "--compensate"],
            2,
            "--no-heal",
        ),
        (["--calibration", "TEXT"], 2, "--prune-layers"),
    ],
)
def test_what_pruning_is_not_given(options, code, words, text, tmp_path, capsys):  # noqa: F811
    options = [str(text) if one == "TEXT" else one for one in options]
    assert main(["quantize", *options, "-t", "1", MODEL, str(tmp_path / "x.gguf"), "COPY"]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "x.gguf").exists()


def test_hidden_states_that_are_not_finite_are_named(text, tmp_path):  # noqa: F811
    def spoiled(spec, raw):
        is_bad = spec.name == "blk.1.attn_norm.weight"
        return np.full(raw.size // 4, np.nan, np.float32).view(np.uint8) if is_bad else raw

    written_again(MODEL, tmp_path / "bad.gguf", spoiled)
    with pytest.raises((CalibrationError, JobError, ValueError), match="not finite"):
        run(Request(str(tmp_path / "bad.gguf"), (Text(text),), n_chunks=10, threads=1, experts=Share(2)))


def test_a_text_that_is_too_short(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time. " * 50)
    with pytest.raises(JobError, match="give a longer text"):
        run(Request(MODEL, (Text(short),), layers=(1,)))


def test_an_output_that_may_not_be_is_refused_before_the_measuring(text, tmp_path, capsys):  # noqa: F811
    output = tmp_path / "notes.txt"
    output.write_text("mine")
    command = ["quantize", "--prune-layers", "auto:1", "--calibration", str(text), "-t", "1"]
    assert main([*command, MODEL, str(output), "COPY"]) == 1
    said = capsys.readouterr().err
    assert "notes.txt" in said
    assert "chunks" not in said
    assert output.read_text() == "mine"
    with pytest.raises(JobError, match="nothing is pruned"):
        run(request(text))
    watcher = Counting()
    with pytest.raises(JobError, match="at most 3 can leave"):
        run(request(text, n_layers=4), watcher)
    assert watcher.stages == []
