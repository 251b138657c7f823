"""Names of outputs that are not given, and names that are no file's."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantmill import cli
from quantmill.commands.quantize_arguments import default_output
from tests.support.places import everything, words


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


@pytest.mark.parametrize(
    "line",
    [
        "quantize @m.gguf @new/ Q8_0",
        "convert @hf @new/",
        "convert @hf -o @new/",
        "imatrix @m.gguf -f @text.txt -o @new/",
        "imatrix merge @im.gguf @im2.gguf -o @new/",
        "evaluate @m.gguf -f @text.txt -o @new/",
        "polish @q.gguf --base @m.gguf --calibration @text.txt -o @new/",
    ],
)
def test_a_folder_that_is_not_there_does_not_become_a_file(
    place: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    before = everything(place)
    assert cli.main(words(place, line)) == 2
    error = capsys.readouterr().err.replace("new/: ", "new/ ")
    assert "new/ names a folder; give the file in it that is to be written" in error
    assert everything(place) == before
