"""A head that is killed: the next run goes on from the rows that are on the disk, and only from its own."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quantmill.jobs import cluster, cluster_line, head
from quantmill.jobs.errors import HeadLost
from quantmill.jobs.quantize import run
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.watcher import Silent
from quantmill.recipe import Recipe
from tests.support.fake_ray import Cluster
from tests.support.measure_models import tiny

# A head of its own, whose pieces are slow; it is killed when some rows are noted.
HEAD = """
import sys
from quantmill.jobs import cluster, cluster_line
from quantmill.jobs.quantize import run
from tests.support.fake_ray import Cluster
from tests.test_ray_resume import job
fake = Cluster(1, slow={"n0": 0.3})
cluster.ray_module, cluster_line.EVERY = lambda: fake, 0.1
run(job(sys.argv[1], source=sys.argv[2]))
"""


def job(output, file_type="Q4_0", source=None, **options):
    recipe = Recipe(file_type)
    return Job(
        source or str(tiny("F16")),
        Path(output),
        recipe,
        device="cpu",
        threads=1,
        max_buffer_bytes=1 << 20,
        ray="auto",
        **options,
    )


class Listening(Silent):
    def __init__(self):
        self.notes = []

    def note(self, line):
        self.notes.append(line)

    warn = note


@pytest.fixture
def killed(tmp_path):
    """An output whose run was killed, and how many of its pieces were noted."""
    output = tmp_path / "x.gguf"
    head = subprocess.Popen([sys.executable, "-c", HEAD, str(output), str(tiny("F16"))])
    noted = tmp_path / "x.gguf.quantmill-rows"
    try:
        deadline = time.monotonic() + 120
        while not noted.exists() or len(noted.read_text().splitlines()) < 5:
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(head.pid, signal.SIGKILL)
        head.wait()
    return output


def gone_on(monkeypatch, asked):
    fake, watcher = Cluster(1), Listening()
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    monkeypatch.setattr(cluster_line, "EVERY", 0.1)
    run(asked, watcher)
    return fake.carried, watcher.notes


def test_nothing_finished_is_done_twice(tmp_path, monkeypatch, killed):
    whole = run(replace(job(tmp_path / "whole.gguf"), ray=None)).paths[0].read_bytes()
    n_all, _ = gone_on(monkeypatch, job(tmp_path / "anew.gguf"))
    n_left, notes = gone_on(monkeypatch, job(killed, resume=True))
    before = next(int(note.split()[0]) for note in notes if "were done before" in note)
    assert before >= 2
    assert n_left == n_all - before
    assert killed.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anew.gguf", "whole.gguf", "x.gguf"]


def test_rows_of_another_run_are_not_gone_on_with(tmp_path, monkeypatch, killed):
    other = job(killed, "Q4_1", resume=True)
    whole = run(replace(other, output=tmp_path / "whole.gguf", ray=None, resume=False)).paths[0].read_bytes()
    _, notes = gone_on(monkeypatch, other)
    assert "0 pieces were done before" in notes
    assert killed.read_bytes() == whole


def test_a_run_that_writes_anew_forgets_what_was_noted(killed):
    from quantmill.gguf_io.partial import PartialFile

    with PartialFile(killed, 10):
        assert not killed.with_name("x.gguf.quantmill-rows").exists()


@pytest.mark.parametrize(
    "noted", [b"\xff\xfe\n[]\n", b"\0" * 40 + b"\n", b'"run"\n[["a", "b"]]\n', b"7\n[1]\n", b""]
)
def test_damaged_notes_count_for_nothing(tmp_path, monkeypatch, noted):
    """What lies in the unfinished output is thrown away with them, between the tensors too."""
    whole = run(replace(job(tmp_path / "whole.gguf"), ray=None)).paths[0].read_bytes()
    (tmp_path / "x.gguf.quantmill-partial").write_bytes(b"\xff" * len(whole))
    (tmp_path / "x.gguf.quantmill-rows").write_bytes(noted)
    _, said = gone_on(monkeypatch, job(tmp_path / "x.gguf", resume=True))
    assert "0 pieces were done before" in said
    assert any("x.gguf.quantmill-rows: is damaged, so the run begins anew" in line for line in said) is bool(
        noted
    )
    assert (tmp_path / "x.gguf").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.gguf", "x.gguf"]


class Losing(Listening):
    """Loses the head when some of the work is done, and noted."""

    def __init__(self, fake, pieces, rows):
        super().__init__()
        self.fake, self.left, self.rows = fake, pieces, rows

    def progressed(self, amount, what=""):
        self.left -= 1
        if self.left == 0:
            until = time.monotonic() + 30
            while "[[" not in self.rows.read_text():
                assert time.monotonic() < until
                time.sleep(0.01)
            self.fake.head.close()
            for actor in self.fake.actors:  # its host and all that was there is gone, and nobody says so
                actor.dead.set()


def test_a_cluster_whose_head_is_lost(tmp_path, monkeypatch):
    """One clear error instead of Ray's, which ends the process; the next run goes on from what was finished."""
    whole = run(replace(job(tmp_path / "whole.gguf"), ray=None)).paths[0].read_bytes()
    for name, seconds in (("EVERY", 0.05), ("LOST", 0.3)):
        monkeypatch.setattr(head, name, seconds)
    monkeypatch.setattr(cluster_line, "EVERY", 0.05)
    fake = Cluster(1, slow={"n0": 0.2})
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    with pytest.raises(
        HeadLost, match=rf"the head of the Ray cluster at {fake.address} has not answered for"
    ):
        run(job(tmp_path / "x.gguf"), Losing(fake, 4, tmp_path / "x.gguf.quantmill-rows"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "whole.gguf",
        "x.gguf.quantmill-partial",
        "x.gguf.quantmill-rows",
    ]
    _, notes = gone_on(monkeypatch, job(tmp_path / "x.gguf", resume=True))
    assert next(int(note.split()[0]) for note in notes if "done before" in note) >= 1
    assert (tmp_path / "x.gguf").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.gguf", "x.gguf"]
