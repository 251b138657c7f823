"""Several files get their names together: all of them, or none, and what was there before is there again."""

import os
from dataclasses import replace
from typing import Any

import pytest

from quantmill import cli
from quantmill.gguf_io import GGUFError, GGUFSink, OutputTensor, commit_all, open_source
from quantmill.gguf_io.metadata import Metadata
from quantmill.imatrix.text import Text
from quantmill.jobs import polish
from tests.support.measure_models import tiny
from tests.support.places import EVALUATE, everything, words

NOTHING: Any = None
RESULT = polish.Result(NOTHING, NOTHING, NOTHING, NOTHING, (), 0, ())


def opened(path, value):
    sink = GGUFSink(path, Metadata(), [OutputTensor("a", (4,), "F32")])
    sink.__enter__()
    sink.write("a", bytes([value] * 16))
    return sink


@pytest.fixture
def sinks(tmp_path):
    """Two new files and one that replaces an old one."""
    opened(tmp_path / "old.gguf", 1).commit()
    found = [opened(tmp_path / name, 2) for name in ("a.gguf", "old.gguf", "b.gguf")]
    yield found
    for sink in found:
        sink.__exit__(None, None, None)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_all_have_their_names(tmp_path, sinks):
    commit_all(sinks)
    assert names(tmp_path) == ["a.gguf", "b.gguf", "old.gguf"]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_none_has_where_one_fails(tmp_path, sinks, monkeypatch, error, at):
    before = (tmp_path / "old.gguf").read_bytes()
    replace, done = os.replace, []

    def failing(source, target):
        if str(source).endswith("-partial"):
            if len(done) == at:
                raise error
            done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises((GGUFError, KeyboardInterrupt)):
        commit_all(sinks)
    for sink in sinks:
        sink.__exit__(None, None, None)
    assert names(tmp_path) == ["old.gguf"]
    assert (tmp_path / "old.gguf").read_bytes() == before


def test_without_second_names_each_file_is_whole(tmp_path, sinks, monkeypatch):
    def no_links(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    commit_all(sinks)
    assert names(tmp_path) == ["a.gguf", "b.gguf", "old.gguf"]


def failing_at(monkeypatch, number, suffixes):
    """The so-manieth renaming of a file with such a name fails."""
    replace, done = os.replace, []

    def failing(source, target):
        if str(source).endswith(suffixes):
            if len(done) == number:
                raise OSError(5, "Input/output error")
            done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    "line",
    [
        "report @run.json -o @page --force",
        "imatrix stats @im.gguf -o @statistics.json --plot @statistics.html",
        EVALUATE + " --base @m.gguf --save-base @compact --save-logits @logits",
    ],
)
def test_a_command_that_writes_several_files_writes_all_or_none(capsys, monkeypatch, place, line, at):
    if line.startswith("report"):
        assert cli.main(words(place, EVALUATE + " -o @run.json")) == 0
    before = everything(place)
    with monkeypatch.context() as patched:
        failing_at(patched, at, "-partial")
        assert cli.main(words(place, line)) == 1
    assert "Input/output error" in capsys.readouterr().err
    assert everything(place).keys() == before.keys()
    assert (place / "page" / "README.md").read_text() == "# mine"
    assert (place / "page" / "index.html").read_text() == "<!doctype html>mine"
    assert cli.main(words(place, line)) == 0
    assert len(everything(place)) == len(before) + (0 if line.startswith("report") else 2)


@pytest.mark.parametrize("at", [0, 1])
def test_polish_puts_all_shards_in_their_places_or_none(tmp_path, monkeypatch, at):
    whole = open_source(tiny("Q4_0"))
    tensors = [OutputTensor(s.name, s.shape, s.type, int(i > 20)) for i, s in enumerate(whole.specs())]
    with GGUFSink(tmp_path / "model.gguf", whole.metadata, tensors, keep_split=True) as sink:
        for spec in whole.specs():
            sink.write(spec.name, whole.read(spec.name))
        sink.commit()
    paths = sink.paths

    def polished(job, watcher):
        made = [path.with_name(f"{path.name}.made") for path in paths]
        for path in made:
            path.write_bytes(b"new")
        return replace(RESULT, paths=tuple(made))

    monkeypatch.setattr(polish, "run", polished)
    before = {path: path.read_bytes() for path in paths}
    with monkeypatch.context() as patched:
        failing_at(patched, at, ".made")
        with pytest.raises(OSError, match="Input/output"):
            polish.polish_in_place(polish.Job(paths[0], tmp_path, (Text(tmp_path),)))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert polish.polish_in_place(polish.Job(paths[0], tmp_path, (Text(tmp_path),))).paths == paths
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(paths, b"new")
