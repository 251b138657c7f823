"""Several files get their names together: all of them, or none, and what was there before is there again."""

import os

import pytest

from quantmill.gguf_io import GGUFError, GGUFSink, OutputTensor, commit_all
from quantmill.gguf_io.metadata import Metadata


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
