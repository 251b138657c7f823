"""Quantizing and converting on a Ray cluster of several raylets on this machine: the same bytes, and plain errors."""

import errno
import json
import os
import socket
import threading
import time
from dataclasses import replace

import pytest

from quantmill import __version__, cli
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.shared import SharedRows
from quantmill.jobs.carrier import SlabCarrier, Task, inputs_of
from quantmill.jobs.errors import JobError
from quantmill.jobs.quantize import Job, plan_job, run
from quantmill.jobs.watcher import Silent
from quantmill.recipe import Recipe
from quantmill.recipe.slabs import slabs
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.raylets import add_raylet, two_raylets

IMATRIX = str(EXAMPLE / "imatrix.gguf")

# Without Ray


def opened(tmp_path, entries_type="Q4_0"):
    """A job, its plan, and an output that is open for others to write into."""
    job = Job(str(tiny("F16")), tmp_path / "out.gguf", Recipe(entries_type), device="cpu")
    plan = plan_job(job)
    return job, plan, GGUFSink(job.output, plan.metadata, plan.output_tensors())


def task_of(job, sink, **changes):
    with open_source(job.source) as source:
        inputs = inputs_of(source.paths)
    return replace(Task(job, inputs, (sink.places(),), None, 1), **changes)


def test_a_carrier_writes_what_the_line_writes(tmp_path):
    job, plan, sink = opened(tmp_path)
    with sink:
        carrier = SlabCarrier(task_of(job, sink))
        assert [engine.name for engine in carrier.ready(__version__).found] == ["cpu"]
        rows = list(slabs([plan.entries], 1 << 18))
        for slab in reversed(rows):  # in any order, some twice
            for _ in range(1 + (slab.first_row == 0)):
                outcome = carrier.carry(slab)
                assert outcome.error is None
            sink.count_written(slab.entries[0].name, slab.n_rows)
        assert carrier.finish().error is None
        carrier.close()
        sink.commit()
    whole = run(replace(job, output=tmp_path / "whole.gguf"))
    assert (tmp_path / "out.gguf").read_bytes() == whole.paths[0].read_bytes()


def test_rows_that_nobody_counted_are_missed(tmp_path):
    _, _, sink = opened(tmp_path)
    with sink, pytest.raises(GGUFError, match=r"0 bytes written, \d+ declared"):
        sink.commit()
    assert not list(tmp_path.iterdir())


def test_what_a_worker_does_not_see_is_said(tmp_path):
    job, _, sink = opened(tmp_path)

    def complaint(task, version=__version__):
        outcome = SlabCarrier(task).ready(version)
        assert outcome.error.startswith(f"{outcome.host}: ")
        return outcome.error

    with sink:
        task = task_of(job, sink)
        gone = replace(task.inputs[0], path=str(tmp_path / "elsewhere.gguf"))
        found = complaint(replace(task, inputs=(gone,)))
        assert "elsewhere.gguf: cannot be read here (No such file or directory); put the model" in found
        other = replace(task.inputs[0], ends="0" * 64)
        assert "is another file here than on the head" in complaint(replace(task, inputs=(other,)))
        places = task.outputs[0]
        unseen = replace(places, files=(replace(places.files[0], path=tmp_path / "nowhere"),))
        assert "out.gguf: the output is not seen here" in complaint(replace(task, outputs=(unseen,)))
        assert f"has quantmill {__version__}, the head 0.0; install the same" in complaint(task, "0.0")


def test_a_full_disk_of_one_worker_is_said(tmp_path, monkeypatch):
    with GGUFSink(tmp_path / "x.gguf", Metadata(), [OutputTensor("a", (64, 4), "F32")]) as sink:
        rows = SharedRows(sink.places())

        def full(*given):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(GGUFError, match=r"x\.gguf: the disk is full at byte \d+ of \d+; free space"):
            rows.write_rows("a", 0, bytes(1024))
        rows.close()


# With it


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'quantmill[ray]'")


@pytest.fixture(scope="module")
def cluster(ray):
    """Two raylets of a processor each."""
    with two_raylets(ray) as made:
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


def test_nobody_at_the_address(tmp_path, ray, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0"]
    for spelled in ([f"--ray=127.0.0.1:{port}"], ["--ray", f"127.0.0.1:{port}"]):
        assert cli.main([*words, *spelled]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: no Ray cluster answers at 127.0.0.1:{port}")  # nothing before
    assert cli.main([*words, "--ray=nonsense"]) == 1
    assert "expected HOST:PORT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_address_belongs_to_the_word_before_it(tmp_path, monkeypatch):
    from quantmill.commands.options import _with_addresses

    monkeypatch.chdir(tmp_path)
    for words, wanted in (
        (["--ray", "head:6379", "a"], ["--ray=head:6379", "a"]),
        (["--ray", "[::1]:80"], ["--ray=[::1]:80"]),
        (["--ray", "model.gguf", "x:1"], ["--ray=auto", "model.gguf", "x:1"]),
        (["--ray=auto", "--ray"], ["--ray=auto", "--ray=auto"]),
        (["--", "--ray", "x:1"], ["--", "--ray", "x:1"]),
    ):
        assert _with_addresses(words) == wanted
    (tmp_path / "x:1").touch()
    assert _with_addresses(["--ray", "x:1"]) == ["--ray=auto", "x:1"]


def test_a_cluster_that_does_not_start_in_time_is_tried_again(ray, monkeypatch):
    from quantmill.jobs import cluster

    asked = []

    def init(address, **options):
        asked.append(address)
        raise (
            ConnectionError("none")
            if address == "auto"
            else Exception("The current node timed out during startup. This could happen because …")
        )

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(JobError, match="did not start here in 3 times 30 s"),
        cluster.connected(cluster.AUTO, 1),
    ):
        pass
    assert asked == ["auto", "local", "local", "local"]


def test_versions_that_differ_are_both_said(ray, monkeypatch):
    from quantmill.jobs import cluster

    def init(**options):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n    Python: 3.9.1\n"
            "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
        )

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(JobError, match=r"\(Ray: 2\.1\.0, Python: 3\.9\.1, Ray: 2\.60\.0, Python: 3\.11\.7\)"),
        cluster.connected(cluster.AUTO, 1),
    ):
        pass


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


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3, 6])
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
def test_a_checkpoint_is_converted_on_a_cluster_of_its_own(tmp_path, ray):
    for name, more in (("a", []), ("b", ["--ray"])):
        words = ["convert", str(EXAMPLE), str(tmp_path / f"{name}.gguf"), "--threads", "1"]
        assert cli.main([*words, *more]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.slow
def test_an_importance_matrix_is_the_same_whoever_sums(tmp_path, cluster):
    common = [
        "imatrix",
        str(tiny("Q8_0")),
        "-f",
        str(EXAMPLE / "calibration.txt"),
        "--ctx",
        "64",
        "--chunks",
        "20",
    ]
    for name, more in (("here", ["--threads", "1"]), ("there", [f"--ray={cluster.address}"])):
        assert cli.main([*common, *more, "-o", str(tmp_path / f"{name}.gguf")]) == 0
    assert (tmp_path / "here.gguf").read_bytes() == (tmp_path / "there.gguf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("base", [["--base", str(tiny("F16"))], []])
def test_an_evaluation_is_the_same_whoever_scores(tmp_path, cluster, base):
    common = [
        "evaluate",
        str(tiny("Q8_0")),
        str(tiny("Q4_0")),
        *base,
        "--text",
        str(EXAMPLE / "evaluation.txt"),
    ]
    common += ["--ctx", "64", "--chunks", "16"]
    found = []
    for name, more in (("here", ["--threads", "1"]), ("there", [f"--ray={cluster.address}"])):
        assert cli.main([*common, *more, "-o", str(tmp_path / f"{name}.json")]) == 0
        record = json.loads((tmp_path / f"{name}.json").read_text())
        found.append({key: record[key] for key in ("models", "base", "ranking", "comparisons")})
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_lost_host_changes_nothing(tmp_path, cluster):
    """The raylet itself is killed while its worker has slabs."""
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
    done = run(replace(job, output=tmp_path / "b.gguf", ray=cluster.address), watcher)
    assert done.paths[0].read_bytes() == whole.paths[0].read_bytes()
    assert any("a worker was lost" in line for line in watcher.warnings)
