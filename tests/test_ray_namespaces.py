"""A cluster whose hosts have nothing in common but a network: namespaces of this machine, each with its own disks."""

import shutil
import sys

import pytest

from quantmill.gguf_io import open_source
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.namespaces import hosts as made_hosts
from tests.support.ray_jobs import Expected, calls, found
from tests.support.raylets import ray_or_skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hosts():
    ray_or_skip()
    with made_hosts(2) as made:
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return Expected(tmp_path_factory.mktemp("expected"))


def quantmill(hosts, *words):
    """Given on the head."""
    done = hosts.all[0].run(
        sys.executable, "-m", "quantmill", *words, "--threads", "1", f"--ray={hosts.address}"
    )
    assert "Traceback" not in done.stderr
    return done


def nothing_runs(hosts):
    for host in hosts.all:
        listed = host.run("ip", "netns", "pids", host.name).stdout.split()
        for pid in listed:
            try:
                with open(f"/proc/{pid}/cmdline") as file:
                    assert "Carrier" not in file.read()
            except FileNotFoundError:
                continue
    return True


@pytest.mark.parametrize("name", [name for name in calls() if name != "splits"])
def test_what_is_made_here(tmp_path, hosts, expected, name):
    wanted, folder = expected(name), tmp_path / "out"
    folder.mkdir()
    done = quantmill(hosts, *(word.format(folder) for word in calls()[name].words))
    assert done.returncode == 0, done.stderr
    assert "2 workers on Ray: qm0, qm1" in done.stderr
    assert found(folder) == wanted
    assert nothing_runs(hosts)


def test_a_source_that_one_host_does_not_see(tmp_path, hosts):
    model = hosts.hidden / "model.gguf"
    shutil.copyfile(tiny("F16"), model)
    for words in (
        ["quantize", str(model), str(tmp_path / "x.gguf"), "Q4_0"],
        [
            "imatrix",
            str(model),
            "-f",
            str(EXAMPLE / "calibration.txt"),
            "--chunks",
            "4",
            "-o",
            str(tmp_path / "x"),
        ],
    ):
        done = quantmill(hosts, *words)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            f"error: qm1: {model}: cannot be read here (No such file or directory); put the model into"
        )
    assert not list(tmp_path.iterdir())


def test_own_copies_and_own_disks(tmp_path, hosts, expected):
    """Nothing is shared but the network; the splits are collected by hand."""
    wanted = expected("splits")["x.gguf"]
    for host in hosts.all:
        shutil.copyfile(tiny("F16"), host.path(hosts.own / tiny("F16").name))
    on = ["--source-on", f"workers:{hosts.own}", "--output-on", f"workers:{hosts.own}"]
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_K_M", *on]
    done = quantmill(hosts, *words)
    assert done.returncode == 0, done.stderr
    collected = tmp_path / "collected"
    collected.mkdir()
    for host in hosts.all:
        (split,) = host.path(hosts.own).glob("x-*")
        assert f"{host.name}: {hosts.own / split.name}" in done.stderr
        shutil.copyfile(split, collected / split.name)
        split.unlink()
    assert found(collected)["x.gguf"] == wanted
    assert len(open_source(collected / "x-00001-of-00002.gguf").paths) == 2

    shutil.copyfile(tiny("Q8_0"), hosts.all[1].path(hosts.own / tiny("F16").name))
    done = quantmill(hosts, *words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: qm1: {hosts.own / tiny('F16').name}: is another file here than on the head ("
    )
    assert nothing_runs(hosts)


def test_a_full_disk_of_one_host(tmp_path, hosts):
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0"]
    done = quantmill(hosts, *words, "--output-on", f"workers:{hosts.small}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "qm1" in last
    assert "free on its disk" in last or "the disk is full" in last
    for host in hosts.all:
        assert not list(host.path(hosts.small).iterdir())
    assert nothing_runs(hosts)
