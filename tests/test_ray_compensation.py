"""Compensation spread over workers: the same bytes for any number of them, whichever are lost on the way."""

import pytest

from quantmill.jobs import cluster
from quantmill.jobs.compensate import run
from quantmill.jobs.compensate_request import Calibration, SilentLayers
from quantmill.jobs.quantize_request import Job
from quantmill.recipe import Recipe
from tests.support.fake_ray import Cluster
from tests.support.measure_models import EXAMPLE, tiny

CALIBRATION = Calibration((str(EXAMPLE / "calibration.txt"),), n_chunks=10)


class Listening(SilentLayers):
    def __init__(self):
        self.warnings = []

    def warn(self, line):
        self.warnings.append(line)


def made(path, ray=None, calibration=CALIBRATION, watcher=None):
    job = Job(str(tiny("F16")), path, Recipe("Q4_K_M"), device="cpu", threads=1, ray=ray)
    run(job, calibration, watcher)
    return path.read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return made(tmp_path_factory.mktemp("alone") / "alone.gguf")


def on(monkeypatch, fake):
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    return cluster.AUTO


@pytest.mark.parametrize(
    ("n_hosts", "losses"),
    [
        (2, (7, 12)),
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(4, (3,), marks=pytest.mark.slow),
    ],
)
def test_the_same_bytes_whoever_computes(tmp_path, monkeypatch, alone, n_hosts, losses):
    fake, watcher = Cluster(n_hosts, losses=losses), Listening()
    assert made(tmp_path / "x.gguf", on(monkeypatch, fake), watcher=watcher) == alone
    assert fake.carried >= 16
    assert sum("a worker was lost" in line for line in watcher.warnings) == len(losses)
