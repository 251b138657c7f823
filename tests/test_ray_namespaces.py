"""A cluster whose hosts have nothing in common but a network and a file system: namespaces of this machine, each with
an address, a name and a disk of its own."""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

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


def given(hosts, *words):
    """A command that runs on the head."""
    more = ["--threads", "1", f"--ray={hosts.address}"]
    return hosts.all[0].started(sys.executable, "-m", "quantmill", *words, *more)


def said(hosts, *words):
    """Its exit code, and what it says."""
    process = given(hosts, *words)
    errors = process.communicate(timeout=300)[1]
    assert "Traceback" not in errors
    return process.returncode, errors


def carriers(hosts):
    running = []
    for host in hosts.all:
        for pid in host.pids():
            with contextlib.suppress(OSError):
                if b"Carrier" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    running.append(pid)
    return running


@pytest.mark.parametrize("name", ["quantize", "imatrix"])
def test_a_host_whose_link_goes_down(tmp_path, expected, name):
    """Nothing ends there and nobody says goodbye: it does not answer any more."""
    ray_or_skip()
    wanted = expected(name)
    with made_hosts(2) as hosts:
        process = given(hosts, *(word.format(tmp_path) for word in calls()[name].words))
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "2 workers on Ray: qm0, qm1" in line:
                hosts.all[1].cut_off()
        assert process.wait(timeout=300) == 0, lines
        assert any("qm1: a worker was lost" in line for line in lines)
        assert found(tmp_path) == wanted
        deadline = time.monotonic() + 60
        while carriers(hosts) and time.monotonic() < deadline:  # qm1 has to find out first
            time.sleep(1)
        assert not carriers(hosts)


@pytest.mark.parametrize("name", ["quantize", "imatrix"])
def test_what_is_made_here(tmp_path, hosts, expected, name):
    wanted, folder = expected(name), tmp_path / "out"
    folder.mkdir()
    code, errors = said(hosts, *(word.format(folder) for word in calls()[name].words))
    assert code == 0, errors
    assert "2 workers on Ray: qm0, qm1" in errors
    assert found(folder) == wanted
    assert not carriers(hosts)


def test_a_source_that_one_host_does_not_see(tmp_path, hosts):
    model = hosts.hidden / "model.gguf"
    shutil.copyfile(tiny("F16"), hosts.all[0].path(model))
    text = str(EXAMPLE / "calibration.txt")
    texts, x = (
        ["--calibration", text, "--evaluation", str(EXAMPLE / "evaluation.txt")],
        str(tmp_path / "x.gguf"),
    )
    for words in (
        ["quantize", str(model), x, "Q4_0"],
        ["imatrix", str(model), "-f", text, "--chunks", "4", "-o", x],
        ["evaluate", str(model), "--text", text, "--chunks", "4", "-o", str(tmp_path / "x.json")],
        ["quantize", str(model), x, "Q4_0", "--compensate", "--calibration", text, "--chunks", "4"],
        ["squeeze", str(model), *texts, "--types", "Q8_0", "--chunks", "2", "-o", str(tmp_path / "set")],
    ):
        code, errors = said(hosts, *words)
        assert code == 1
        assert errors.splitlines()[-1].startswith(
            f"error: qm1: {model}: cannot be read here (No such file or directory); put the model into"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # which is gone on with
    assert not list((tmp_path / "set").glob("*.gguf"))
    assert not carriers(hosts)


def test_an_output_that_one_host_does_not_see(tmp_path, hosts):
    text, x = str(EXAMPLE / "calibration.txt"), hosts.own / "x.gguf"
    for words, what in (
        ([str(x), "Q4_0"], f"{x}: the output is not seen here (No such file or directory: "),
        (
            [str(x), "Q4_0", "--compensate", "--calibration", text, "--chunks", "4"],
            f"{x}: the output is not seen here (No such file or directory: ",
        ),
    ):
        code, errors = said(hosts, "quantize", str(tiny("F16")), *words)
        assert code == 1
        assert errors.splitlines()[-1].startswith(f"error: qm1: {what}")
    texts = ["--calibration", text, "--evaluation", str(EXAMPLE / "evaluation.txt"), "--imatrix-chunks", "2"]
    words = ["squeeze", str(EXAMPLE), *texts, "--types", "Q8_0", "--chunks", "2", "--no-speed"]
    code, errors = said(hosts, *words, "-o", str(hosts.own / "set"))
    assert code == 1
    assert errors.splitlines()[-1] == (
        f"error: qm1: {hosts.own / 'set' / '.quantmill'}: is not seen here; write the set (-o) into a file system that "
        "all hosts share"
    )
    for host in hosts.all:
        left = {path.name for path in host.path(hosts.own).iterdir()}
        assert left == ({"set"} if host is hosts.all[0] else set())
        shutil.rmtree(host.path(hosts.own / "set"), ignore_errors=True)
    assert not carriers(hosts)


def test_own_copies_and_own_disks(tmp_path, hosts, expected):
    """Nothing is shared but the network; the splits are collected by hand."""
    wanted = expected("splits")["x.gguf"]
    for host in hosts.all:
        shutil.copyfile(tiny("F16"), host.path(hosts.own / tiny("F16").name))
    on = ["--source-on", f"workers:{hosts.own}", "--output-on", f"workers:{hosts.own}"]
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_K_M", *on]
    code, errors = said(hosts, *words)
    assert code == 0, errors
    collected = tmp_path / "collected"
    collected.mkdir()
    for host in hosts.all:
        (split,) = host.path(hosts.own).glob("x-*")
        assert f"{host.name}: {hosts.own / split.name}" in errors
        shutil.copyfile(split, collected / split.name)
        split.unlink()
    assert found(collected)["x.gguf"] == wanted
    with contextlib.closing(open_source(collected / "x-00001-of-00002.gguf")) as source:
        assert len(source.paths) == 2

    shutil.copyfile(tiny("Q8_0"), hosts.all[1].path(hosts.own / tiny("F16").name))
    code, errors = said(hosts, *words)
    assert code == 1
    assert errors.splitlines()[-1].startswith(
        f"error: qm1: {hosts.own / tiny('F16').name}: is another file here than on the head ("
    )
    assert not carriers(hosts)


def test_what_a_killed_worker_leaves_on_its_disk_goes(tmp_path, expected):
    """Its split is made by another, on whose disk it is then."""
    ray_or_skip()
    wanted = expected("splits")["x.gguf"]
    with made_hosts(2) as hosts:
        words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_K_M", "--max-buffer-size", "1"]
        process = given(hosts, *words, "--output-on", f"workers:{hosts.own}")
        disk = hosts.all[1].path(hosts.own)
        while not (begun := list(disk.glob("*.quantmill-partial"))):
            assert process.poll() is None, process.communicate()
        there = set(hosts.all[1].pids())
        (worker,) = there.intersection(carriers(hosts))
        os.kill(worker, signal.SIGKILL)
        assert begun
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors
        assert "qm1: a worker was lost" in errors
        assert "may be left" not in errors
        collected = tmp_path / "collected"
        collected.mkdir()
        for host in hosts.all:
            for path in host.path(hosts.own).iterdir():
                assert path.suffix == ".gguf"
                assert not (collected / path.name).exists()
                shutil.copyfile(path, collected / path.name)
        assert found(collected)["x.gguf"] == wanted
        assert not carriers(hosts)


def test_a_full_disk_of_one_host(tmp_path, hosts):
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0"]
    code, errors = said(hosts, *words, "--output-on", f"workers:{hosts.small}")
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith("error: qm1: ")
    assert "free on its disk" in last or "the disk is full" in last
    for host in hosts.all:
        assert not list(host.path(hosts.small).iterdir())
    assert not carriers(hosts)
