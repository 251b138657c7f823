"""A head that is lost, whatever asks it for something then: one line that names it, and nothing that counts as done."""

import os
import subprocess
import sys
import time

import pytest

from quantmill import cli
from quantmill.jobs import cluster, compensate, head
from quantmill.jobs.collect import run as collect_run
from quantmill.jobs.crew import Crew
from quantmill.jobs.errors import ClusterError, HeadLost, JobError
from quantmill.jobs.pieces import Patience, sound
from quantmill.jobs.watcher import Silent
from tests.support.fake_ray import Cluster, RayActorError
from tests.support.raylets import raylets
from tests.test_crew import Carrier, Listening
from tests.test_squeeze import results, squeezed

QUICK = Patience(begin=5.0, finish=0.3)
LINE = "the head of the Ray cluster at {} does not answer (Connection refused); start the cluster again"


def crew_on(fake, kind=Carrier, watcher=None):
    return Crew(fake, kind, lambda node: node.name, watcher or Silent(), lambda node: 1, QUICK)


def lost(fake):
    return pytest.raises(HeadLost, match=LINE.format(fake.address).replace("(", r"\(").replace(")", r"\)"))


def test_before_workers_start():
    fake = Cluster(1)
    fake.head.close()
    with lost(fake), crew_on(fake):
        pass
    assert not fake.actors


def test_while_workers_start():
    """Ray says of the worker that it has died, or nothing at all."""
    fake, watcher = Cluster(1), Listening()

    class Dying(Carrier):
        def ready(self, version):
            fake.head.close()
            fake.actors[0].lose()

    with lost(fake), crew_on(fake, Dying, watcher):
        pass
    assert not watcher.lines


def test_with_all_of_its_workers_at_once():
    """Before it has been silent for long."""
    fake = Cluster(1)
    with crew_on(fake) as crew:
        fake.head.close()
        crew._give_up_for("workers were lost 51 times")
        assert isinstance(crew.error, HeadLost)


def test_while_ray_waits_for_it_without_end(monkeypatch):
    monkeypatch.setattr(head, "EVERY", 0.1)
    fake = Cluster(1)

    def nodes():
        fake.head.close()
        time.sleep(60)

    fake.nodes = nodes
    began = time.monotonic()
    with lost(fake), crew_on(fake):
        pass
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "error", [RayActorError("the actor died\nits node has"), ClusterError("n0: no room")]
)
def test_whatever_a_stage_was_told(monkeypatch, error):
    fake = Cluster(1)
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    with lost(fake), cluster.connected("auto", 1):
        fake.head.close()
        raise error
    fake = Cluster(1)
    with pytest.raises(ClusterError, match=r"its node has$|n0: no room$"), cluster.connected("auto", 1):
        raise error


def test_an_error_of_the_job_stays_what_it_is(monkeypatch):
    fake = Cluster(1)
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    wrong = JobError("no such text")
    fake.head.close()
    with pytest.raises(JobError, match="no such text"), cluster.connected("auto", 1):
        raise wrong


def test_ray_is_told_to_let_this_process_live(monkeypatch):
    name, seen = "RAY_gcs_rpc_server_reconnect_timeout_s", []
    fake = Cluster(1)
    fake.init = lambda **options: seen.append(os.environ.get(name))  # and is not connected
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)
    monkeypatch.delenv(name, raising=False)
    with cluster.connected("auto", 1):
        assert name not in os.environ
    monkeypatch.setenv(name, "7")
    with cluster.connected("auto", 1):
        assert os.environ[name] == "7"
    assert seen == ["1000000", "7"]


def without_head(monkeypatch, before):
    """A fake that loses its head before a stage."""
    fake = Cluster(2)
    monkeypatch.setattr(cluster, "ray_module", lambda: fake)

    def begun(*given, **options):
        fake.head.close()
        return before(*given, **options)

    return fake, begun


def test_a_squeeze_between_two_stages(tmp_path, capsys, monkeypatch):
    fake, begun = without_head(monkeypatch, collect_run)
    monkeypatch.setattr("quantmill.jobs.collect.run", begun)
    assert cli.main([*squeezed(tmp_path / "out", "--types", "Q8_0"), "--ray"]) == 1
    assert LINE.format(fake.address) in capsys.readouterr().err.splitlines()[-1]
    assert not results(tmp_path / "out")


def test_better_codes_are_not_left_out_for_it(tmp_path, capsys, monkeypatch):
    """As they are where a model cannot be walked: the next run would find that they are done with."""
    fake, begun = without_head(monkeypatch, compensate.run)
    monkeypatch.setattr("quantmill.jobs.compensate.run", begun)
    call = squeezed(tmp_path / "out", "--types", "Q4_K_M", "--learn-chunks", "10", plain=False)
    assert cli.main([*call, "--ray"]) == 1
    said = capsys.readouterr().err
    assert LINE.format(fake.address) in said.splitlines()[-1]
    assert "left out, the head" not in said
    assert not results(tmp_path / "out")


def test_what_is_of_a_host_says_nothing_of_the_model():
    from quantmill.jobs.carrier import told

    def full():
        raise OSError(28, "No space left on device")

    def broken():
        raise JobError("blk.0: not finite")

    for work, abroad, kind in (
        (full, False, ClusterError),
        (broken, True, ClusterError),
        (broken, False, JobError),
    ):
        with pytest.raises(JobError) as found:
            sound(told(work, [], abroad), print)
        assert type(found.value) is kind


# In a process that needs no cluster for longer than Ray waits for its head.
LOCAL = """
import sys
from quantmill.jobs import cluster
from quantmill.jobs.crew import Crew
from quantmill.jobs.watcher import Silent
from tests.test_crew import Carrier
with cluster.connected(sys.argv[1], 1) as ray:
    print("connected", flush=True)
    sys.stdin.readline()
    print("done without it", flush=True)
    try:
        Crew(ray, Carrier, lambda node: node.name, Silent(), lambda node: 1).__enter__()
    except Exception as error:
        print(error, flush=True)
"""


@pytest.mark.slow
def test_while_nothing_is_asked_of_a_cluster():
    """Ray would end the process after a minute, in its own words."""
    with raylets(1) as made:
        address, pipe = made.address, subprocess.PIPE
        command = [sys.executable, "-c", LOCAL, address]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            made.head_node.kill_gcs_server()
            time.sleep(75)
            said, _ = process.communicate("\n", timeout=120)
        assert process.returncode == 0
    assert said.splitlines()[0] == "done without it"
    assert said.splitlines()[1].startswith(LINE.format(address))
