"""A squeeze of all that the hub gives it, and its way back there: texts, tasks, rivals, card, publish."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantmill import cli
from quantmill.jobs.hub import Hub
from tests.support.hub_server import TOKEN, FakeHub, serving
from tests.support.measure_models import DATA, EXAMPLE, tiny

TASKS = "ikawrakow/validation-datasets-for-llama.cpp"
WINOGRANDE = "ikawrakow/winogrande-eval-for-llama.cpp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("squeeze") / "out"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    place = tmp_path_factory.mktemp("hub")
    lines = (EXAMPLE / "calibration.txt").read_text().splitlines(keepends=True)[:400]
    texts = {
        "calibration.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in lines).encode(),
        "evaluation.txt": (EXAMPLE / "evaluation.txt").read_bytes()[:12000],
    }
    repos = {
        ("dataset", "org/texts"): texts,
        ("dataset", TASKS): {"arc-challenge-validation.bin": (DATA / "mc.bin").read_bytes()},
        ("dataset", WINOGRANDE): {"winogrande-debiased-eval.csv": (DATA / "wg.csv").read_bytes()},
        ("model", "bart/tiny-GGUF"): {"tiny-Q4_0.gguf": tiny("Q4_0").read_bytes()},
    }
    with pytest.MonkeyPatch.context() as patch, serving(repos) as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(place / "token"))
        patch.delenv("HF_TOKEN", raising=False)
        yield hub


FURTHER = (*("--tasks", "arc,winogrande", "--n-tasks", "4"), "--rivals", "bart/tiny-GGUF", "--measure-rivals")


def command(served: FakeHub, folder: Path, *words: str) -> list[str]:
    texts = ["--calibration", "org/texts:calibration.jsonl", "--evaluation", "org/texts:evaluation.txt"]
    few = ["--chunks", "2", "--imatrix-chunks", "2", "--threads", "1", "--plain", "--no-speed"]
    place = ["-o", str(folder), "--endpoint", served.url]
    return ["squeeze", str(EXAMPLE), "--types", "Q4_0", *place, *texts, *few, *words]


def test_all_that_the_hub_gives_is_in_the_card(
    served: FakeHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command(served, folder, *FURTHER), "--events"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert {"stages", "began", "progress", "measured", "chosen"} < set(kinds)
    assert kinds[-1] == "result"
    measured = next(event for event in events if event["event"] == "measured")
    (made,) = events[-1]["files"]
    assert (measured["label"], measured["kld"]) == ("Q4_0", made["kld"])
    assert set(made["tasks"]) == {"ARC", "WinoGrande"}

    card = (folder / "README.md").read_text()
    assert 'datasets:\n- "org/texts"\n' in card
    ours, theirs = (folder / "tiny-qwen3-moe-Q4_0.gguf").stat().st_size, tiny("Q4_0").stat().st_size
    row = f"| {theirs / 1e9:.4f} | {ours / 1e9:.4f} | {100 * (theirs - ours) / theirs:.1f} % |"
    assert row in card
    assert "| model | bart | here | shrinkage |" in card
    assert "| tiny-qwen3-moe-Q4\\_0-bart | " in card  # measured, but no link and no choice
    assert "tiny-Q4_0.gguf" not in card
    assert card.count("-bart") == 3  # quality, percentiles, and a verdict
    for column in ("ARC % (n = 4)", "WinoGrande % (n = 4)", "mean", "ρ PPL %", "RMS Δp %"):
        assert column in card
    assert "`org-texts-calibration.txt`" in card
    assert str(folder.parent) not in card
    assert str(EXAMPLE.parent) not in card
    page = (folder / "index.html").read_text()
    assert "Sizes in GB" in page
    assert "Which one" in page


def test_nothing_is_asked_twice(served: FakeHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the run before: texts, tasks and files are there, so that no network is needed."""
    served.requests.clear()
    assert cli.main([*command(served, folder, *FURTHER), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages_done"] == 0
    assert served.requests == []
    assert cli.main(["squeeze", "--status", str(folder), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["progress"]) == ("finished", None)
    assert {row["state"] for row in status["stages"]} == {"found"}
    assert cli.main(["squeeze", "--status", str(folder)]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_model_of_the_hub_is_fetched_and_named(
    served: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path for path in EXAMPLE.iterdir() if path.suffix in (".json", ".safetensors", ".txt")]
    served.repos["model", "org/tiny"] = {path.name: path.read_bytes() for path in names}
    monkeypatch.chdir(tmp_path)
    words = command(served, tmp_path / "out")
    words[1] = "org/tiny"
    assert cli.main([*words, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["candidates"][0]["file"] == "tiny-Q4_0.gguf"
    assert [stage["label"] for stage in planned["stages"]] == ["the original", "importance", "Q4_0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rivals", "bart/none-GGUF"), "bart/none-GGUF: there is no such model repository on the hub"),
        (("--calibration", "org/texts:other.txt"), "has no file other.txt"),
        (
            ("--evaluation", "org/texts:calibration.jsonl"),
            "is the calibration text org/texts:calibration.jsonl too",
        ),
        (("--tasks", "arcs"), "--tasks arcs: did you mean arc?"),
        (("--tasks", "arc,mmlu"), f"--tasks mmlu: {TASKS} has no file mmlu-validation.bin on the hub"),
        (("--evaluation", "self"), "--evaluation self: files are judged on a text of people"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    served: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert cli.main(command(served, tmp_path / "out", *words)) in (1, 2)
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_publishing_begins_only_when_it_can_end(
    served: FakeHub, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = ["publish", str(folder), "tester/tiny-GGUF", "--endpoint", served.url]
    assert cli.main([*publish, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    names = ["README.md", "index.html", "tiny-qwen3-moe-Q4_0.gguf", "tiny-qwen3-moe.imatrix.gguf"]
    assert [Path(one["path"]).name for one in planned["files"]] == names

    assert cli.main(publish) == 1
    assert "you are not logged in to the hub; run 'hf auth login' first" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert cli.main(publish) == 1
    assert "the hub does not know your token" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli.main(["publish", str(folder), "others/tiny", "--endpoint", served.url]) == 1
    assert "you are tester and can write to tester, not to others" in capsys.readouterr().err

    card = folder / "README.md"
    text = card.read_bytes()
    card.unlink()
    assert cli.main(publish) == 1
    assert "there is no card" in capsys.readouterr().err
    card.write_bytes(text)
    model = folder / names[2]
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + b"\x01")
    assert cli.main(publish) == 1
    assert "is not the file that was measured" in capsys.readouterr().err
    model.write_bytes(whole)
    assert ("model", "tester/tiny-GGUF") not in served.repos


def test_a_stopped_upload_goes_on_and_can_be_fetched(
    served: FakeHub,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    publish = ["publish", str(folder), "tester/tiny-GGUF", "--private", "--endpoint", served.url]
    served.uploads.clear()
    served.stop_after = 1
    assert cli.main(publish) == 1
    errors = capsys.readouterr().err
    assert "the upload was stopped" in errors
    assert "the same command goes on" in errors
    served.stop_after = None
    assert cli.main(publish) == 0
    assert "published: " in capsys.readouterr().out
    assert len(served.uploads) == len(set(served.uploads)) == 2  # neither file was sent twice
    assert "tester/tiny-GGUF" in served.private
    hub = Hub(served.url, TOKEN, tmp_path / "cache")
    for name in ("README.md", "index.html", "tiny-qwen3-moe-Q4_0.gguf", "tiny-qwen3-moe.imatrix.gguf"):
        assert hub.file("tester/tiny-GGUF", name, "model").read_bytes() == (folder / name).read_bytes()
    assert sorted(served.repos["model", "tester/tiny-GGUF"])[-1] == "tiny-qwen3-moe.imatrix.gguf"
