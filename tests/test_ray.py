"""Jobs on a Ray cluster of several raylets on this machine: the same bytes, whoever is lost."""

import os
import threading
import time
from dataclasses import replace

import pytest

from quantmill import cli
from quantmill.jobs.quantize import Job, run
from quantmill.jobs.watcher import Silent
from quantmill.recipe import Recipe
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.raylets import add_raylet, raylets

IMATRIX = str(EXAMPLE / "imatrix.gguf")


@pytest.fixture(scope="module")
def cluster():
    with raylets(2) as made:
        yield made


def test_several_types_on_two_hosts_are_the_same_bytes(tmp_path, cluster):
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    common = ["quantize", str(tiny("F16")), "--imatrix", IMATRIX, "--max-buffer-size", "1", "--threads", "1"]
    types = "Q4_0,Q8_0"
    assert cli.main([*common, str(tmp_path / "there"), types, f"--ray={cluster.address}"]) == 0
    assert cli.main([*common, str(tmp_path / "here"), types]) == 0
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    assert len(list((tmp_path / "there").iterdir())) == 2


class Killing(Silent):
    """Kills workers of the cluster now and then while a job goes on."""

    def __init__(self, times):
        self.left, self.warnings = times, []

    def warn(self, line):
        self.warnings.append(line)

    def progressed(self, amount, what=""):
        if self.left:
            self.left -= 1
            threading.Thread(target=kill_a_worker).start()
            time.sleep(0.3)


def kill_a_worker():
    import psutil

    for process in psutil.process_iter(["name", "cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith("ray::SlabCarrier") and os.getpid() in [p.pid for p in process.parents()]:
            process.kill()
            return


@pytest.mark.parametrize("kills", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6))])
def test_killed_workers_change_nothing(tmp_path, cluster, kills):
    job = Job(
        str(tiny("F16")), tmp_path / "a.gguf", Recipe("Q4_K_M"), imatrix=IMATRIX, max_buffer_bytes=1 << 18
    )
    whole = run(job)
    watcher = Killing(kills)
    done = run(replace(job, output=tmp_path / "b.gguf", ray=cluster.address), watcher)
    assert done.paths[0].read_bytes() == whole.paths[0].read_bytes()
    assert any("a worker was lost" in line for line in watcher.warnings)


@pytest.mark.slow
def test_a_lost_host_changes_nothing(tmp_path, cluster, capfd):
    """The raylet itself is killed while its worker has slabs; what Ray says of it does not get into the output."""
    job = Job(str(tiny("F16")), tmp_path / "a.gguf", Recipe("Q4_K_M"), max_buffer_bytes=1 << 17, threads=1)
    whole = run(job)
    node = add_raylet(cluster)
    cluster.wait_for_nodes()

    class Losing(Silent):
        done = 0

        def __init__(self):
            self.warnings = []

        def warn(self, line):
            self.warnings.append(line)

        def progressed(self, amount, what=""):
            self.done += 1
            if self.done == 3:
                cluster.remove_node(node, allow_graceful=False)

    watcher = Losing()
    capfd.readouterr()
    done = run(replace(job, output=tmp_path / "b.gguf", ray=cluster.address), watcher)
    assert capfd.readouterr().out == ""
    assert done.paths[0].read_bytes() == whole.paths[0].read_bytes()
    assert any("a worker was lost" in line for line in watcher.warnings)
