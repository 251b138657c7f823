"""Work with the hub, against a small server that speaks its API: texts, tasks, rivals, uploads; and what cannot be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantmill import cli
from quantmill.jobs import data_sets
from quantmill.jobs.errors import JobError
from quantmill.jobs.hub import Hub, local_model
from quantmill.jobs.rivals import rival_files
from quantmill.jobs.texts import HubText, SelfText, text_source
from tests.support.hub_server import TOKEN, FakeHub, serving


def parquet_bytes(columns: dict[str, list[object]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    # One protocol of uploads: the other one needs a server of its own kind. The tests' cache is their own.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as hub:
        yield hub


def here(served: FakeHub, tmp_path: Path) -> Hub:
    return Hub(served.url, TOKEN, tmp_path / "cache")


def test_what_an_argument_means(tmp_path: Path) -> None:
    own = tmp_path / "a.txt"
    own.write_text("x")
    assert text_source(str(own)) == own
    assert text_source("self") == SelfText()
    assert text_source("org/name:dir/f.parquet#text") == HubText("org/name", "dir/f.parquet", "text")
    assert text_source("org/name#body") == HubText("org/name", None, "body")
    assert text_source("eaddario/imatrix-calibration") == HubText(
        "eaddario/imatrix-calibration", "combined_en_small.parquet"
    )
    with pytest.raises(JobError, match="no such file, and no data set"):
        text_source(str(tmp_path / "missing.txt"))


TEXTS = {
    "lines.jsonl": b'{"text": "one", "id": 1}\n{"text": "two\\n", "id": 2}\n',
    "plain.txt": "Wörter\n".encode(),
    "numbers.jsonl": b'{"id": 1, "score": 2.5}\n',
    "two.jsonl": b'{"question": "a", "answer": "b"}\n',
    "README.md": b"# about\n",
}


def text(served: FakeHub, tmp_path: Path, wanted: HubText) -> str:
    hub = here(served, tmp_path)
    name = data_sets.found_file(wanted, hub)
    return data_sets.text_of(hub.file(wanted.repo, name, "dataset"), name, wanted)


def test_texts_of_each_kind(served: FakeHub, tmp_path: Path) -> None:
    rows = {"text": ["", " = Title = \n", "words"], "n": [1, 2, 3]}
    served.repos["dataset", "org/t"] = {**TEXTS, "a/w.parquet": parquet_bytes(rows)}
    assert text(served, tmp_path, HubText("org/t", "lines.jsonl")) == "one\ntwo\n"
    assert text(served, tmp_path, HubText("org/t", "plain.txt")) == "Wörter"
    assert text(served, tmp_path, HubText("org/t", "a/w.parquet")) == "\n = Title = \nwords\n"
    assert text(served, tmp_path, HubText("org/t", "two.jsonl", "answer")) == "b\n"
    served.repos["dataset", "org/one"] = {"README.md": b"", "only.txt": b"here\n"}
    assert text(served, tmp_path, HubText("org/one")) == "here"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (HubText("org/t", "numbers.jsonl"), r"has no text column; its columns are id, score"),
        (HubText("org/t", "two.jsonl"), r"several columns are text \(question, answer\); name one"),
        (HubText("org/t", "two.jsonl", "other"), r"has no column other; its columns are question, answer"),
        (HubText("org/t", "numbers.jsonl", "id"), "the column id is no text"),
        (HubText("org/t", "plain.txt", "text"), "is plain text and has no column text"),
        (HubText("org/t", "missing.txt"), r"has no file missing.txt; it has lines.jsonl, plain.txt"),
        (HubText("org/t"), r"the data set has lines.jsonl, .*: name one, org/t:FILE"),
        (HubText("org/nowhere", "a.txt"), "there is no such data set on the hub"),
    ],
)
def test_texts_that_do_not_serve(served: FakeHub, tmp_path: Path, wanted: HubText, message: str) -> None:
    served.repos["dataset", "org/t"] = TEXTS
    with pytest.raises(JobError, match=message):
        text(served, tmp_path, wanted)


def test_a_parquet_file_without_text(served: FakeHub, tmp_path: Path) -> None:
    served.repos["dataset", "org/t"] = {
        "n.parquet": parquet_bytes({"n": [1], "x": [0.5]}),
        "b.parquet": b"no",
    }
    with pytest.raises(JobError, match="has no text column; its columns are n, x"):
        text(served, tmp_path, HubText("org/t", "n.parquet"))
    with pytest.raises(JobError, match="is no parquet file"):
        text(served, tmp_path, HubText("org/t", "b.parquet"))


def test_a_model_is_fetched_without_what_conversion_does_not_read(served: FakeHub, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"1", "README.md": b"a", "pytorch_model.bin": b"2"}
    served.repos["model", "org/m"] = files
    found = local_model("org/m", hub=here(served, tmp_path))
    assert sorted(p.name for p in found.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(JobError, match="neither a path here nor a model on the Hugging Face hub"):
        local_model("org/none", hub=here(served, tmp_path))


def test_files_of_rivals_by_type(served: FakeHub, tmp_path: Path) -> None:
    served.repos["model", "bart/m-GGUF"] = {
        "m-Q4_K_M.gguf": bytes(7),
        "m-UD-Q5_K_M.gguf": bytes(5),
        "m-2.gguf": bytes(3),
        "mmproj-m-f16.gguf": bytes(9),
        "Q8_0/m-Q8_0-00001-of-00002.gguf": bytes(11),
        "Q8_0/m-Q8_0-00002-of-00002.gguf": bytes(4),
        "README.md": b"",
    }
    found = rival_files("bart/m-GGUF", ["Q4_K_M", "Q5_K_M", "Q8_0"], here(served, tmp_path))
    assert {type: file.n_bytes for type, file in found.items()} == {"Q4_K_M": 7, "Q8_0": 15}
    assert found["Q8_0"].files[0].endswith("-00001-of-00002.gguf")
    with pytest.raises(JobError, match="there is no such model repository on the hub"):
        rival_files("bart/none-GGUF", ["Q4_K_M"], here(served, tmp_path))
    served.repos["model", "bart/empty"] = {"README.md": b""}
    with pytest.raises(JobError, match="holds no GGUF file of a known type"):
        rival_files("bart/empty", ["Q4_K_M"], here(served, tmp_path))


def test_names_of_repositories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", str(tmp_path), "no-owner"]) == 2
    assert "give one as org/name" in capsys.readouterr().err
    assert cli.main(["publish", str(tmp_path), "org/name", "--dry-run"]) == 1
    assert "no squeeze is finished here" in capsys.readouterr().err
