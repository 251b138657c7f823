"""What whoever gave the command sees of work on a cluster: the same progress as without one."""

from dataclasses import replace

import pytest

from quantmill.imatrix.text import Cutting, Text
from quantmill.jobs import cluster, collect, evaluate, quantize
from quantmill.jobs.watcher import Silent
from quantmill.recipe import Recipe
from tests.support.fake_ray import Cluster
from tests.support.measure_models import EXAMPLE, tiny

TEXT = EXAMPLE / "calibration.txt"


class Screen(Silent):
    """stages: what, of how much, how much of it was done, in what unit."""

    def __init__(self):
        self.stages, self.notes, self.warnings = [], [], []

    def note(self, line):
        self.notes.append(line)

    def warn(self, line):
        self.warnings.append(line)

    def began(self, what, total, unit):
        self.stages.append([what, total, 0, unit])

    def progressed(self, amount, what=""):
        self.stages[-1][2] += amount


def quantized(folder, ray, screen):
    recipe, output = Recipe("Q4_0"), folder / "x.gguf"
    job = quantize.Job(str(tiny("F16")), output, recipe, device="cpu", threads=1, max_buffer_bytes=1 << 20)
    quantize.run(replace(job, ray=ray), screen)


def collected(folder, ray, screen):
    cutting = Cutting(64, 8)
    job = collect.Job(tiny("Q8_0"), "x", (Text(TEXT),), folder / "x.gguf", cutting, device="cpu", threads=1)
    collect.run(replace(job, ray=ray), screen)


def evaluated(folder, ray, screen):
    job = evaluate.Job(
        (tiny("Q8_0"),), tiny("F16"), text=TEXT, n_ctx=64, chunks=8, device="cpu", threads=1, ray=ray
    )
    evaluate.run(job, screen)


@pytest.mark.parametrize("job", [quantized, collected, evaluated])
def test_the_progress_of_all_workers_on_one_screen(tmp_path, monkeypatch, job):
    monkeypatch.setattr(cluster, "ray_module", lambda: Cluster(2))
    found = []
    for name, ray in (("here", None), ("there", cluster.AUTO)):
        (tmp_path / name).mkdir()
        screen = Screen()
        job(tmp_path / name, ray, screen)
        assert not screen.warnings
        found.append(screen)
    here, there = found
    assert there.stages == here.stages
    assert all(done == total > 0 for _, total, done, _ in there.stages)
    assert any(line == "2 workers on Ray: host0, host1" for line in there.notes)
