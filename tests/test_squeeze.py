"""From a model to a set of files: the stages, what a second run repeats, what is refused before the work."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from quantmill import cli
from quantmill.gguf_io import open_source
from quantmill.jobs import quantize, squeeze_texts
from quantmill.jobs.hub import Hub
from quantmill.jobs.memory import Memory
from quantmill.jobs.squeeze_request import MEMORY
from quantmill.jobs.watcher import PlanWatcher
from tests.support.measure_models import EXAMPLE, tiny

CALIBRATION, EVALUATION = EXAMPLE / "calibration.txt", EXAMPLE / "evaluation.txt"
FEW = ("--chunks", "2", "--imatrix-chunks", "2", "--threads", "1", "--no-speed")


def squeezed(folder: Path, *words: str, evaluation: Path = EVALUATION, plain: bool = True) -> list[str]:
    texts = ["--calibration", str(CALIBRATION), "--evaluation", str(evaluation)]
    few = [*FEW, *(["--plain"] if plain else [])]
    return ["squeeze", str(EXAMPLE), "-o", str(folder), *texts, *few, *words]


def results(folder: Path) -> dict[str, str]:
    paths = [*folder.glob("*.gguf"), *folder.glob("*.recipe.toml")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def run(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, object]:
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_second_run_repeats_nothing_that_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing of several types is made in one reading of the model, to the bytes that each has alone."""
    folder = tmp_path / "out"
    passes: list[list[str]] = []
    run_jobs = quantize.run_jobs

    def counted(
        jobs: Sequence[quantize.Job], watcher: PlanWatcher | None = None
    ) -> tuple[quantize.Result, ...]:
        passes.append([job.recipe.file_type for job in jobs])
        return run_jobs(jobs, watcher)

    monkeypatch.setattr(quantize, "run_jobs", counted)
    first = run(capsys, *squeezed(folder, "--types", "Q4_K_M"))
    assert (first["stages_done"], first["stages_found"]) == (4, 0)  # base, importance, a file, its divergence
    assert sorted(results(folder)) == ["tiny-qwen3-moe-Q4_K_M.gguf", "tiny-qwen3-moe.imatrix.gguf"]
    before = results(folder)

    again = run(capsys, *squeezed(folder, "--types", "Q4_K_M,IQ3_S,Q8_0"))
    assert (again["stages_done"], again["stages_found"]) == (4, 4)
    assert passes == [["Q4_K_M"], ["IQ3_S", "Q8_0"]]
    files = {Path(one["path"]).name: one for one in again["files"]}  # type: ignore[attr-defined]
    assert 0 < files["tiny-qwen3-moe-Q4_K_M.gguf"]["kld"] < files["tiny-qwen3-moe-IQ3_S.gguf"]["kld"]
    assert before.items() <= results(folder).items()

    card = (folder / "README.md").read_text()
    assert "[tiny-qwen3-moe-IQ3\\_S](tiny-qwen3-moe-IQ3_S.gguf)" in card
    assert "`evaluation.txt`" in card
    assert str(tmp_path) not in card
    source = open_source(folder / "tiny-qwen3-moe-Q4_K_M.gguf")
    assert source.metadata.value("quantize.imatrix.file") == "tiny-qwen3-moe.imatrix.gguf"
    assert source.metadata.value("quantize.imatrix.dataset") == "calibration.txt"
    source.close()

    whole = results(folder)
    (folder / "tiny-qwen3-moe-IQ3_S.gguf").unlink()
    third = run(capsys, *squeezed(folder, "--types", "IQ3_S"))
    assert third["stages_done"] == 0
    assert passes[2:] == [["IQ3_S"]]
    assert results(folder) == whole  # made again, and nothing else touched


def test_the_plan_is_shown_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    planned = run(capsys, *squeezed(folder, "--types", "Q8_0", "--size", "3900000B", "--dry-run"))
    assert not folder.exists()
    sizes = {(one["file"], one["label"]): one["bytes"] for one in planned["candidates"]}  # type: ignore[attr-defined]
    assert sizes["tiny-qwen3-moe-3.72MiB.gguf", "3.72MiB, found types"] == 3_900_000
    tried = [label for _, label in sizes if label not in ("Q8_0", "3.72MiB, found types")]
    assert len(tried) == 2
    assert all(size <= 3_900_000 for (_, label), size in sizes.items() if label in tried)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--types", "Q9_X"), 2, "Q9_X"),
        ((), 2, "give --types, --size or --fit"),
        (("--size", "1MiB"), 1, "no file type makes this model so small; the least is"),
        (("--fit", "4MB"), 1, "nothing is left for the model"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, message: str
) -> None:
    assert cli.main(squeezed(tmp_path / "out", *words)) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_file_that_somebody_changed_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    run(capsys, *squeezed(folder, "--types", "Q8_0"))
    whole = results(folder)
    (folder / "tiny-qwen3-moe-Q8_0.gguf").write_bytes((folder / "tiny-qwen3-moe.imatrix.gguf").read_bytes())
    assert cli.main(squeezed(folder, "--types", "Q8_0")) == 1  # an importance matrix is no model: --force
    assert "--force" in capsys.readouterr().err
    run(capsys, *squeezed(folder, "--types", "Q8_0", "--force"))
    assert results(folder) == whole


def test_a_model_that_is_quantized_already_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["--calibration", str(CALIBRATION), "--evaluation", str(EVALUATION)]
    command = ["squeeze", str(tiny("Q4_0")), "-o", str(tmp_path / "out"), *texts, "--types", "Q2_K"]
    assert cli.main(command) == 1
    assert "Q2_K: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_text_that_decides_is_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = tmp_path / "copy.txt"
    same.write_bytes(CALIBRATION.read_bytes())
    assert cli.main(squeezed(tmp_path / "out", "--types", "Q8_0", evaluation=same)) == 1
    assert "is the calibration text" in capsys.readouterr().err


def test_a_card_of_somebodys_own_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("# my own\n")
    assert cli.main(squeezed(tmp_path, "--types", "Q8_0")) == 1
    assert "README.md" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_place_of_the_output_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model or a text is asked for."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Hub, "model", None)
    monkeypatch.setattr(squeeze_texts, "require_texts", None)
    words = ["--types", "Q8_0", "--endpoint", "http://127.0.0.1:9"]
    for model in ("org/model", str(EXAMPLE)):
        for more in ([], ["--dry-run"]):
            assert cli.main(["squeeze", model, *words, "-o", "file/deep", *more]) == 1
            assert capsys.readouterr().err.startswith(
                "error: file/deep: file is no directory; choose another"
            )
    (tmp_path / "model").touch()  # where the model's name would go
    assert cli.main(["squeeze", "org/model", *words]) == 1
    assert capsys.readouterr().err.startswith("error: model: model is no directory; choose another output")


def finished(folder: Path) -> dict[str, int]:
    """Stages that are done, by name, with the time when they were kept."""
    memory = Memory(folder / MEMORY)
    keys = memory.keys()
    return {key: memory.file(key, ".json").stat().st_mtime_ns for key in keys}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path: Path) -> None:
    """kill -9 at 50 moments: the same files and recipes in the end, and no stage that was finished is done again."""
    command = [sys.executable, "-m", "quantmill"]
    learned = ("--compensate", "--polish", "--learn-chunks", "12")
    few = tuple(word for word in FEW if word != "--no-speed")
    words = ("--types", "Q4_K_M", "--size", "4MiB", *learned, *few)

    def squeeze(folder: Path) -> list[str]:
        texts = ["--calibration", str(CALIBRATION), "--evaluation", str(EVALUATION)]
        return [*command, "squeeze", str(EXAMPLE), "-o", str(folder), *texts, *words, "--json"]

    whole = tmp_path / "whole"
    started = time.monotonic()
    subprocess.run(squeeze(whole), check=True, capture_output=True)
    length = time.monotonic() - started
    killed, moments = tmp_path / "killed", random.Random(1)
    kept: dict[str, int] = {}
    for _ in range(50):
        process = subprocess.Popen(squeeze(killed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(moments.uniform(0, length / 4))
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait() in (0, -9), errors
        now = finished(killed)
        assert kept.items() <= now.items()  # what was finished is as it was
        kept = now
    done = subprocess.run(squeeze(killed), check=True, capture_output=True)
    assert kept.items() <= finished(killed).items()
    assert results(killed) == results(whole)
    assert finished(killed).keys() == finished(whole).keys()
    result = json.loads(done.stdout)
    again = json.loads(subprocess.run(squeeze(killed), check=True, capture_output=True).stdout)
    assert again["stages_done"] == 0
    assert again["files"] == result["files"]  # tokens per second too: what was measured is not measured again
