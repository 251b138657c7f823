"""What a squeeze learns from a text: better codes and scales, the hours they may take, text of the model's own."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.synthetic import write_hollow
from quantmill import cli
from quantmill.gguf_io import open_source
from quantmill.gguf_io.errors import GGUFError
from quantmill.jobs import polish_request
from quantmill.jobs.errors import JobError
from quantmill.jobs.memory import Memory
from quantmill.jobs.self_text import remove_parts, self_text
from quantmill.jobs.squeeze import plan_job
from quantmill.jobs.squeeze_candidates import Candidates
from quantmill.jobs.squeeze_costs import Costs, learning_of
from quantmill.jobs.squeeze_request import Job, Wish
from quantmill.jobs.texts import SelfText
from quantmill.jobs.thorough import RATE
from quantmill.jobs.watcher import Silent
from quantmill.models.model import load
from quantmill.models.sampling import sample, text_of_tokens
from tests.support.measure_models import EXAMPLE, tiny

CALIBRATION, EVALUATION = EXAMPLE / "calibration.txt", EXAMPLE / "evaluation.txt"
TEXTS = ("--calibration", str(CALIBRATION), "--evaluation", str(EVALUATION))
FEW = ("--chunks", "2", "--imatrix-chunks", "2", "--learn-chunks", "12", "--threads", "1", "--no-speed")


def test_codes_and_scales_are_learned_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q2_K loses so much that four chunks suffice to see better codes win. Polish, whose own tests train, is asked for
    them and gives them back as they are."""
    asked: list[polish_request.Job] = []

    def polished(wanted: polish_request.Job, watcher: object) -> SimpleNamespace:
        asked.append(wanted)
        assert wanted.output is not None
        shutil.copyfile(wanted.quant, wanted.output)
        loss = SimpleNamespace(kld=SimpleNamespace(value=0.1))
        return SimpleNamespace(paths=(wanted.output,), helped=True, before=loss, after=loss)

    monkeypatch.setattr("quantmill.jobs.polish.run", polished)
    folder = tmp_path / "out"
    words = ["--types", "Q2_K", *TEXTS, *FEW, "--learn-chunks", "4", "-o", str(folder), "--json"]
    assert cli.main(["squeeze", str(EXAMPLE), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    (made,) = found["files"]
    losses = {made["made_as"]: made["kld"], **made["instead_of"]}
    assert set(losses) == {"Q2_K", "Q2_K, compensated", "Q2_K, compensated, polished"}
    assert (
        made["kld"] == losses["Q2_K, compensated"] == losses["Q2_K, compensated, polished"] < losses["Q2_K"]
    )
    (wanted,) = asked
    unseen = (wanted.n_chunks, wanted.skip_chunks, wanted.rate)
    assert unseen == (4, 4, RATE)  # behind the chunks that codes were fitted to
    assert wanted.base == EXAMPLE
    source = open_source(folder / "tiny-qwen3-moe-Q2_K.gguf")
    assert source.metadata.value("quantmill.calibrate.method") == "compensate"
    source.close()
    # The decision about the hours is kept too: measured again, it might be another one.
    assert cli.main(["squeeze", str(EXAMPLE), *words]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["stages_done"], again["files"]) == (0, found["files"])
    assert "Q2\\_K, compensated" in (folder / "README.md").read_text()


def test_a_full_disk_leaves_no_candidate_out_for_good() -> None:
    """What is left out is left out in every run after."""
    notes: list[str] = []
    squeeze: Any = SimpleNamespace(_stages=SimpleNamespace(watcher=SimpleNamespace(note=notes.append)))
    with pytest.raises(GGUFError, match="full"):
        Candidates._without(squeeze, "Q2_K, polished", False, GGUFError("the disk is full"))
    assert Candidates._without(squeeze, "Q2_K, polished", False, JobError("too short"))["why"] == "too short"
    assert notes == ["Q2_K, polished: left out, too short"]


def job(**changes: object) -> Job:
    made = Job(EXAMPLE, "M", Path("out"), (CALIBRATION,), EVALUATION, types=("Q4_K_M", "Q2_K"), chunks=2)
    return replace(made, **changes)  # type: ignore[arg-type]


WISHES = (Wish("Q4_K_M", "Q4_K_M"), Wish("Q2_K", "Q2_K"))


def test_what_fits_the_hours_is_done_and_the_rest_said() -> None:
    costs = Costs(n_weights=10**9, active=10**9, solver=10**12, n_matrices=200, rate=100.0)
    codes, scales = costs.compensate(48), costs.polish(48)
    judged = costs.tokens(1024)
    free = job(
        compensate=None, polish=None, learn_chunks=48, hours=(2 * codes + scales + 3.5 * judged) / 3600
    )
    found = learning_of(free, WISHES, costs)
    assert found.steps == {("Q4_K_M", "compensate"), ("Q2_K", "compensate"), ("Q4_K_M", "polish")}
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("polish of Q2_K: about ")
    nothing = learning_of(replace(free, hours=0), WISHES, costs)
    assert not nothing.steps
    assert nothing.left_out[0].startswith("compensated codes of Q4_K_M, Q2_K: about ")
    insisted = learning_of(replace(free, hours=0, polish=True), WISHES, costs)
    assert insisted.steps == {("Q4_K_M", "polish"), ("Q2_K", "polish")}
    plain = learning_of(replace(free, compensate=False, polish=False), WISHES, costs)
    assert (plain.steps, plain.left_out) == (frozenset(), ())


def test_the_size_column_of_a_card_without_its_weights(tmp_path: Path) -> None:
    """Qwen3-30B-A3B: sizes in GB as the card that this project set out from has them for llama-quantize's own types."""
    model = tmp_path / "Qwen3-30B-A3B-F16.gguf"
    write_hollow(model)
    card = {"Q3_K_M": 14.7, "Q3_K_S": 13.3, "Q4_K_M": 18.6, "Q4_K_S": 17.5, "Q5_K_M": 21.7, "Q5_K_S": 21.1}
    card |= {"Q6_K": 25.1, "Q8_0": 32.5}
    asked = job(model=model, name="Qwen3-30B-A3B", directory=tmp_path / "out", types=tuple(card))
    found = plan_job(asked)
    assert {one.candidate.label: round(one.n_bytes / 1e9, 1) for one in found.candidates} == card
    assert found.disk > sum(one.n_bytes for one in found.candidates)
    # A size of the card's own column, which its layers' types made: within reach.
    found = plan_job(replace(asked, types=(), sizes=(13_500_000_000,)))
    assert found.candidates[0].n_bytes == 13_500_000_000
    with pytest.raises(JobError, match=r"the least is Q1_0 with \d+ bytes, the most F32 with \d+"):
        plan_job(replace(asked, types=(), sizes=(3_000_000_000,)))


Usage = namedtuple("Usage", "total used free")


def test_no_room_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 10**12 - 10**6, 10**6))
    folder = tmp_path / "out"
    command = ["squeeze", str(EXAMPLE), "--types", "Q8_0", *TEXTS, *FEW, "-o", str(folder)]
    assert cli.main(command) == 1
    assert "bytes, 1000000 are free on its disk" in capsys.readouterr().err
    assert cli.main([*command, "--dry-run"]) == 1  # with the plan
    shown = capsys.readouterr()
    assert "tiny-qwen3-moe-Q8_0.gguf" in shown.out
    assert "bytes, 1000000 are free on its disk" in shown.err
    assert not folder.exists()


def test_one_run_at_a_time_and_where_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert cli.main(["squeeze", "--status", str(folder)]) == 1
    assert "no squeeze has begun here" in capsys.readouterr().err
    folder.mkdir()
    memory = Memory(folder / ".quantmill")
    stages = [["the original", "done", 3.0], ["importance", "running", None], ["Q8_0", "waiting", None]]
    memory.keep("run", {"command": "quantmill squeeze m", "stages": stages})
    memory.keep("progress", {"what": "importance", "done": 3, "total": 4})
    command = ["squeeze", str(EXAMPLE), "--types", "Q8_0", *TEXTS, *FEW, "-o", str(folder)]
    with memory.held():
        assert cli.main(command) == 1
        assert "another run is at work there" in capsys.readouterr().err
        assert cli.main(["squeeze", "--status", str(folder)]) == 0
        assert "running: importance, 75 %" in capsys.readouterr().out
    assert cli.main(["squeeze", "--status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "stopped; the same command goes on" in shown
    assert "running" not in shown
    assert cli.main(["squeeze", str(EXAMPLE), "--status", str(folder)]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plain", "--polish"), "--plain leaves out what --compensate and --polish ask for"),
        (("--events", "--json"), "--events ends with the result; leave out --json"),
        (("--measure-rivals",), "--measure-rivals measures the files of --rivals"),
        (("--hours", "-1"), "--hours -1: cannot be negative"),
        (("--calibration", "missing.txt"), "missing.txt: no such file, and no data set of the hub"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    command = ["squeeze", str(EXAMPLE), "--types", "Q8_0", *TEXTS, "-o", str(tmp_path / "out"), *words]
    assert cli.main(command) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_model_writes_from_its_seeds_alone() -> None:
    torch.set_num_threads(1)
    loaded = load(tiny("F16"))
    start = loaded.tokenizer.encode("The ", add_special=False)
    first = sample(loaded, start, [(1, 0), (1, 1)], 1.0, 12)
    assert first.shape == (2, 12)
    assert (first == sample(loaded, start, [(1, 0), (1, 1)], 1.0, 12)).all()
    assert (first[0] != first[1]).any()
    # A row does not depend on those beside it but by rounding; cold enough, it is the likeliest token of each step.
    cold = sample(loaded, start, [(1, 5)], 1e-4, 4)[0].tolist()
    ids = list(start)
    for token in cold:
        with torch.no_grad():
            assert token == int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    loaded.close()


def test_tokens_become_the_text_that_they_came_from() -> None:
    source = open_source(tiny("F16"))
    loaded = load(tiny("F16"))
    words = "Fünf Wörter, 12 digits\n  and (signs)…"
    assert text_of_tokens(source.metadata, loaded.tokenizer.encode(words, add_special=False)) == words
    source.close()
    loaded.close()


def test_the_models_own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone on with after an interrupt it is the same, and no group of sequences is written twice."""
    monkeypatch.setattr("quantmill.jobs.self_text.SEQUENCE", 64)
    monkeypatch.setattr("quantmill.jobs.self_text.TOGETHER", 8)
    text = self_text(EXAMPLE, "cpu", 1024, tmp_path, Silent())
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 2
    parts[1].unlink()
    written: list[int] = []

    def counted(*arguments: Any) -> np.ndarray:
        written.append(len(arguments[2]))
        return sample(*arguments)

    monkeypatch.setattr("quantmill.jobs.self_text.sample", counted)
    assert self_text(EXAMPLE, "cpu", 1024, tmp_path, Silent()) == text
    assert written == [8]
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(set(text.split())) > 100
    assert np.mean([sign.isalpha() or sign.isspace() for sign in text]) > 0.8  # it has learned English
    with pytest.raises(JobError, match="judged on a text of people"):
        job(evaluation=SelfText())
