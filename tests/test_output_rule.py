"""The output rule through the command line: no command replaces its inputs, or what it did not write."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from quantmill import cli
from quantmill.commands.quantize_arguments import default_output
from tests.support.measure_models import EXAMPLE, tiny

IMATRIX = EXAMPLE / "imatrix.gguf"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one file of each kind that commands read."""
    shutil.copyfile(tiny("F16"), tmp_path / "m.gguf")
    shutil.copyfile(tiny("Q8_0"), tmp_path / "q.gguf")
    shutil.copyfile(IMATRIX, tmp_path / "im.gguf")
    (tmp_path / "recipe").write_text('file_type = "Q8_0"\n')
    (tmp_path / "rules").write_text("attn_v=q8_0\n")
    shutil.copytree(EXAMPLE, tmp_path / "hf")
    (tmp_path / "notes.txt").write_text("precious\n")
    return tmp_path


def everything(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def refused(capsys: pytest.CaptureFixture[str], place: Path, line: str) -> str:
    """The one line with which a command line is refused; nothing may have changed."""
    before = everything(place)
    code = cli.main(line.replace("@", str(place) + os.sep).split())
    captured = capsys.readouterr()
    assert code == 1, captured
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert everything(place) == before
    return captured.err


INPUTS = [
    "quantize @m.gguf @m.gguf Q8_0",
    "quantize --imatrix @im.gguf @m.gguf @im.gguf Q4_K",
    "quantize --tensor-type-file @rules @m.gguf @rules Q4_K",
    "quantize --recipe @recipe @m.gguf @recipe",
    "convert @hf @hf/config.json",
    "convert @hf @hf/model.safetensors",
    "quantize @hf @hf/tokenizer.json Q8_0",
]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("line", INPUTS)
def test_an_input_is_never_replaced(
    capsys: pytest.CaptureFixture[str], place: Path, line: str, force: bool
) -> None:
    assert "is an input; choose another output" in refused(capsys, place, line + " --force" * force)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_input_is_never_replaced_by_way_of_a_link(
    capsys: pytest.CaptureFixture[str], place: Path, link: object
) -> None:
    link(place / "im.gguf", place / "link.gguf")  # type: ignore[operator]
    line = "quantize --force --imatrix @im.gguf @m.gguf @link.gguf Q4_K"
    assert "is an input" in refused(capsys, place, line)


OTHER_KINDS = [
    ("quantize @m.gguf @notes.txt Q8_0", "is not a GGUF model but a text"),
    ("quantize @m.gguf @im.gguf Q8_0", "is not a GGUF model but an importance matrix"),
    ("quantize @m.gguf @hf/config.json Q8_0", "is not a GGUF model but a JSON file"),
    ("convert @hf @notes.txt", "is not a GGUF model but a text"),
]


@pytest.mark.parametrize(("line", "message"), OTHER_KINDS)
def test_another_kind_is_replaced_only_by_force(
    capsys: pytest.CaptureFixture[str], place: Path, line: str, message: str
) -> None:
    assert message in refused(capsys, place, line)
    code = cli.main((line + " --force").replace("@", str(place) + os.sep).split())
    captured = capsys.readouterr()
    assert code == 0, captured
    assert "is replaced: it is there already" in captured.err


@pytest.mark.parametrize("line", ["quantize @m.gguf @q.gguf Q8_0", "convert @hf @q.gguf"])
def test_its_own_kind_is_replaced_and_that_is_said(
    capsys: pytest.CaptureFixture[str], place: Path, line: str
) -> None:
    size = (place / "q.gguf").stat().st_size
    assert cli.main(line.replace("@", str(place) + os.sep).split()) == 0
    lines = capsys.readouterr().err.splitlines()
    assert f"{place}/q.gguf is replaced: it is there already, a GGUF model of {size} bytes" in lines


def test_default_names_differ_by_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-quantize's name beside a GGUF; two directories of one folder used to share it."""
    monkeypatch.chdir(tmp_path)
    for name in ("hfs/modelA", "hfs/modelB"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "m.gguf").touch()
    assert default_output("hfs/modelA", "Q4_K_M", ".gguf") == Path("hfs/modelA-Q4_K_M.gguf")
    assert default_output("hfs/modelB/", "Q4_K_M", ".gguf") == Path("hfs/modelB-Q4_K_M.gguf")
    assert default_output("org/modelC", "Q4_K_M", ".gguf") == Path("modelC-Q4_K_M.gguf")
    assert default_output("m.gguf", "Q4_K_M", ".gguf") == Path("ggml-model-Q4_K_M.gguf")
    monkeypatch.chdir(tmp_path / "hfs" / "modelA")
    assert default_output(".", "Q4_K_M", "") == Path("modelA-Q4_K_M")
