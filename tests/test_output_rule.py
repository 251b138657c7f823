"""The output rule through the command line: no command replaces its inputs, or what it did not write."""

from __future__ import annotations

import json
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
    (tmp_path / "text.txt").write_text("words " * 6000)
    (tmp_path / "record.json").write_text('{"format": 1, "models": []}')
    (tmp_path / "table.csv").write_text("name,bytes,bits_per_weight\n")
    (tmp_path / "wg.csv").write_text("1,a _ b,c,d,1\n")
    (tmp_path / "base.logits").write_bytes(b"_logits_" + bytes(100))
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<!doctype html>mine")
    (tmp_path / "page" / "README.md").write_text("# mine")
    shutil.copyfile(IMATRIX, tmp_path / "im2.gguf")
    (tmp_path / "im.gguf.partial.gguf").write_bytes(b"GGUF")
    for name in ("im.html", "im.json"):
        shutil.copyfile(IMATRIX, tmp_path / name)
    (tmp_path / "notes.txt").write_text("precious\n")
    return tmp_path


def everything(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Every file by what changes when it is written, replaced or touched."""
    found = {}
    for path in directory.rglob("*"):
        status = path.stat()
        found[str(path.relative_to(directory))] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


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
    "evaluate --base @m.gguf -f @text.txt --save-base @m.gguf @q.gguf",
    "evaluate --base @m.gguf -f @text.txt --save-base @q.gguf @q.gguf",
    "evaluate --base @m.gguf -f @text.txt --save-logits @text.txt @q.gguf",
    "evaluate --base @hf -f @text.txt --save-logits @hf/tokenizer.json @q.gguf",
    "evaluate --base-file @base.logits -o @record.json @record.json",
    "evaluate @m.gguf -f @text.txt --tokenizer @hf -o @hf/config.json",
    "evaluate @m.gguf --hellaswag @record.json -o @record.json",
    "evaluate @m.gguf --winogrande @wg.csv -o @wg.csv",
    "evaluate speed @record.json -o @record.json",
    "report @page/index.html -o @page",
    "imatrix @m.gguf -f @text.txt -o @m.gguf",
    "imatrix @m.gguf -f @text.txt -o @text.txt",
    "imatrix @hf -f @text.txt -o @hf/tokenizer.json",
    "imatrix @m.gguf -f @text.txt --tokenizer @hf -o @hf/config.json",
    "imatrix @im.gguf.partial.gguf -f @text.txt -o @im.gguf",
    "imatrix stats @im.html --plot @im.html",
    "imatrix stats @im.json -o @im.json",
    "imatrix merge @im.gguf @im2.gguf -o @im2.gguf",
    "imatrix convert @im.gguf -o @im.gguf",
    "quantize --compensate --calibration @text.txt @m.gguf @text.txt Q4_K",
    "quantize --target-size 6M --calibration @text.txt @m.gguf @text.txt",
    "polish @q.gguf --base @m.gguf --calibration @text.txt -o @m.gguf",
    "polish @q.gguf --base @m.gguf --calibration @text.txt -o @text.txt",
]


@pytest.mark.parametrize("line", INPUTS)
def test_an_input_is_never_replaced(capsys: pytest.CaptureFixture[str], place: Path, line: str) -> None:
    """Not even by force; without it an output is asked the same."""
    assert "is an input; choose another output" in refused(capsys, place, line + " --force")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_input_is_never_replaced_by_way_of_a_link(
    capsys: pytest.CaptureFixture[str], place: Path, link: object
) -> None:
    link(place / "im.gguf", place / "link.gguf")  # type: ignore[operator]
    line = "quantize --force --imatrix @im.gguf @m.gguf @link.gguf Q4_K"
    assert "is an input" in refused(capsys, place, line)


COLLECT = "imatrix @m.gguf -f @text.txt -c 16 --chunks 2 -t 1"
EVALUATE = "evaluate @q.gguf -f @text.txt --chunks 2 -c 16 -t 1"
OTHER_KINDS = [
    ("quantize @m.gguf @notes.txt Q8_0", "is not a GGUF model but a text"),
    ("quantize @m.gguf @im.gguf Q8_0", "is not a GGUF model but an importance matrix"),
    ("quantize @m.gguf @hf/config.json Q8_0", "is not a GGUF model but a JSON file"),
    ("convert @hf @notes.txt", "is not a GGUF model but a text"),
    (EVALUATE + " -o @hf/config.json", "is not an evaluation record but a JSON file"),
    (EVALUATE + " -o @wg.csv", "is not a table of evaluations but a text"),
    (EVALUATE + " --base @m.gguf --save-base @notes.txt", "is not saved predictions but a text"),
    (
        EVALUATE + " --base @m.gguf --save-logits @im.gguf",
        "is not saved predictions but an importance matrix",
    ),
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


def test_a_report_leaves_foreign_pages_and_cards_alone(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    command = (EVALUATE + " -o @record.json").replace("@", str(place) + os.sep).split()
    assert cli.main(command) == 0
    assert "record.json is replaced" in capsys.readouterr().err
    assert "is not a page of quantmill report but a text" in refused(
        capsys, place, "report @record.json -o @page"
    )
    (place / "page" / "index.html").unlink()
    assert "is not a card of quantmill report but a text" in refused(
        capsys, place, "report @record.json -o @page"
    )
    report = ["report", str(place / "record.json"), "-o", str(place / "page")]
    assert cli.main([*report, "--force"]) == 0
    assert cli.main(report) == 0
    assert capsys.readouterr().err.count("is replaced") == 3


FLAGS = [
    "evaluate @q.gguf -f @text.txt --json @new.json",
    "evaluate --base @m.gguf -f @text.txt --csv @q.gguf @q.gguf",
    "evaluate @q.gguf -f @text.txt --json -",
    "evaluate @q.gguf -f @text.txt --json=@new.json",
    "evaluate speed @q.gguf --csv @new.csv",
    "imatrix stats @im.gguf --json @new.json",
    "imatrix stats --csv @new.csv @im.gguf",
    "imatrix diff @im.gguf @im2.gguf --json -",
    "imatrix @m.gguf -f @text.txt --json @new.json",
]


@pytest.mark.parametrize("line", FLAGS)
def test_json_takes_no_file(capsys: pytest.CaptureFixture[str], place: Path, line: str) -> None:
    """`evaluate --json a.gguf b.gguf` used to turn a.gguf into JSON."""
    before = everything(place)
    assert cli.main(line.replace("@", str(place) + os.sep).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "takes no file: --json prints to standard output, -o" in captured.err
    assert everything(place) == before


def test_json_before_a_model_prints(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    before = everything(place)
    line = "evaluate -f @text.txt --chunks 2 -c 16 -t 1 --json @m.gguf @q.gguf"
    assert cli.main(line.replace("@", str(place) + os.sep).split()) == 0
    assert [m["file"]["name"] for m in json.loads(capsys.readouterr().out)["models"]] == ["m", "q"]
    assert everything(place) == before


PLACES = [
    (EVALUATE + " -o @no/run.json", "there is no directory"),
    (EVALUATE + " -o @run.txt", "an evaluation is written as .json or as .csv"),
    (EVALUATE + " --base @m.gguf --save-base @no/base", "there is no directory"),
    (EVALUATE + " --base @m.gguf --save-base @x --save-logits @x", "is to be written twice"),
    (COLLECT + " -o @no/im.gguf", "there is no directory"),
    ("imatrix convert @im.gguf -o @no/im.dat", "there is no directory"),
    ("imatrix stats @im.gguf -o @x.json --plot @no/im.html", "there is no directory"),
    ("report @record.json -o @notes.txt", "is no directory"),
    ("report @record.json -o @notes.txt/deep", "is no directory"),
]


def test_json_is_one_object_in_one_style(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    lines = [
        "types --json", "devices --json", "quantize --dry-run --json @m.gguf Q8_0", "quantize --json @m.gguf @1 Q8_0",
        "convert --json @hf @2", COLLECT + " -o @3 --json", "imatrix stats @im.gguf --json",
        "imatrix merge @im.gguf @im2.gguf -o @4 --json", "imatrix convert @im.gguf -o @5.dat --json",
        "imatrix diff @im.gguf @im2.gguf --json", EVALUATE + " --json -o @run.json",
        "report @run.json -o @new --json",
    ]  # fmt: skip
    for line in lines:
        assert cli.main(line.replace("@", str(place) + os.sep).split()) == 0, line
        out = capsys.readouterr().out
        found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
        assert isinstance(found, dict)
        assert out == json.dumps(found, indent=1) + "\n", line


@pytest.mark.parametrize(("line", "message"), PLACES)
def test_a_place_that_cannot_be_is_found_before_the_work(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    import quantmill.jobs.collect_load
    import quantmill.jobs.evaluate

    monkeypatch.setattr(quantmill.jobs.collect_load, "load", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(quantmill.jobs.evaluate, "load", lambda *_: pytest.fail("the work began"))
    assert message in refused(capsys, place, line)


def test_a_write_protected_file_is_refused(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    for name in ("q.gguf", "record.json"):
        (place / name).chmod(0o444)
    assert "is write-protected" in refused(capsys, place, "quantize --force @m.gguf @q.gguf Q8_0")
    line = "evaluate @m.gguf -f @text.txt -o @record.json"
    assert "is write-protected" in refused(capsys, place, line)


REPLACING = {
    "quantize @m.gguf @q.gguf Q8_0": "q.gguf",
    "convert @hf @q.gguf": "q.gguf",
    COLLECT + " -o @im2.gguf": "im2.gguf",
    "imatrix merge @im.gguf @im.gguf -o @im2.gguf": "im2.gguf",
    "imatrix convert @im.gguf -o @im2.gguf": "im2.gguf",
    "imatrix stats @im2.gguf -o @record.json --force": "record.json",
    "imatrix stats @im.gguf --plot @im.html --force": "im.html",
    EVALUATE + " -o @record.json": "record.json",
    EVALUATE + " --save-base @base.logits --base @m.gguf": "base.logits",
    EVALUATE + " -o @table.csv": "table.csv",
}


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("line", REPLACING)
def test_its_own_kind_is_replaced_and_that_is_said(
    capsys: pytest.CaptureFixture[str], place: Path, line: str, quiet: bool
) -> None:
    """Also with --quiet: what was there is lost."""
    name = REPLACING[line]
    size = (place / name).stat().st_size
    assert cli.main([*["-q"] * quiet, *line.replace("@", str(place) + os.sep).split()]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(
        one.startswith(f"warning: {place}/{name} is replaced: it is there already, ")
        and one.endswith(f"of {size} bytes")
        for one in lines
    ), lines


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
    assert cli.main(line.replace("@", str(place) + os.sep).split()) == 2
    error = capsys.readouterr().err.replace("new/: ", "new/ ")
    assert "new/ names a folder; give the file in it that is to be written" in error
    assert everything(place) == before
