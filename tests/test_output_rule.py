"""The output rule through the command line: no command replaces its inputs, or what it did not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantmill import cli
from tests.support.places import COLLECT, EVALUATE, refused, words

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
    code = cli.main(words(place, line + " --force"))
    captured = capsys.readouterr()
    assert code == 0, captured
    assert "is replaced: it is there already" in captured.err


def test_a_report_leaves_foreign_pages_and_cards_alone(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    command = words(place, EVALUATE + " -o @record.json")
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


@pytest.mark.parametrize(("line", "message"), PLACES)
def test_a_place_that_cannot_be_is_found_before_the_work(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    import quantmill.jobs.collect_load
    import quantmill.jobs.evaluate

    monkeypatch.setattr(quantmill.jobs.collect_load, "load", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(quantmill.jobs.evaluate, "load", lambda *_: pytest.fail("the work began"))
    assert message in refused(capsys, place, line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("quantize @m.gguf @loop Q8_0", "is a link that leads to itself"),
        ("convert @hf @loop", "is a link that leads to itself"),
        (COLLECT + " -o @loop", "is a link that leads to itself"),
        ("imatrix merge @im.gguf @im2.gguf -o @loop", "is a link that leads to itself"),
        (EVALUATE + " -o @loop.json", "is a link that leads to itself"),
        (EVALUATE + " --base @m.gguf --save-base @loop", "is a link that leads to itself"),
        ("imatrix stats @im.gguf --plot @loop.html", "is a link that leads to itself"),
        ("polish @q.gguf --base @m.gguf --calibration @text.txt -o @loop", "is a link that leads to itself"),
        ("report @record.json -o @loop", "is no directory"),
        (
            "squeeze @hf --types Q4_K_M --calibration @text.txt --evaluation @notes.txt -o @loop",
            "is no directory",
        ),
        ("prune @hf --layers 1 --to-hf @loop", "is there already"),
    ],
)
def test_a_link_that_leads_to_itself_is_refused(
    capsys: pytest.CaptureFixture[str], place: Path, line: str, message: str
) -> None:
    """By way of another one, too; neither is replaced."""
    links = {"loop": "other", "other": "loop", "loop.json": "loop.json", "loop.html": "loop.html"}
    for name, target in links.items():
        (place / name).symlink_to(target)
    before = sorted(path.name for path in place.iterdir())
    assert cli.main(words(place, line)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {place}/loop")
    assert message in captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert sorted(path.name for path in place.iterdir()) == before
    assert {name: os.readlink(place / name) for name in links} == links


def test_what_a_link_names_is_replaced_or_made(place: Path) -> None:
    for name, target in (("there", "q.gguf"), ("not-there", "new.gguf")):
        (place / name).symlink_to(target)
        assert cli.main(words(place, f"quantize @m.gguf @{name} Q4_0")) == 0
        assert (place / name).is_symlink()
    assert (place / "q.gguf").read_bytes() == (place / "new.gguf").read_bytes()


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
    assert cli.main([*["-q"] * quiet, *words(place, line)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(
        one.startswith(f"warning: {place}/{name} is replaced: it is there already, ")
        and one.endswith(f"of {size} bytes")
        for one in lines
    ), lines
