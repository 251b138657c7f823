"""Workers and raylets killed at random moments of all jobs: the same result or a clean error, and nothing left running.

One kill by hand: `pytest -m slow tests/test_ray_kills.py -k quantize-seed7`.
"""

import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from quantmill import cli
from tests.support.ray_jobs import Expected, calls, carriers, done, found, left_running, words_of
from tests.support.raylets import add_raylet, raylets

pytestmark = pytest.mark.slow

KILLS = [
    pytest.param(name, seed, id=f"{name}-seed{seed}")
    for name, call in calls().items()
    for seed in range(call.n_kills)
]


@pytest.fixture(scope="module")
def cluster():
    with raylets(2) as made:
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return Expected(tmp_path_factory.mktemp("expected"))


class Killer(threading.Thread):
    """Kills one worker, or a raylet and all below it, when some worker has begun and a random time has passed.

    span: the longest that it waits; took: seconds from the first worker on until there was none.
    """

    def __init__(self, cluster, chance, span):
        super().__init__(daemon=True)
        self.cluster, self.chance, self.span, self.over = cluster, chance, span, threading.Event()
        self.killed, self.took = "", span

    def run(self):
        while not carriers():
            if self.over.wait(0.1):
                return
        began, moment = time.monotonic(), self.chance.uniform(0, self.span)
        while (gone := time.monotonic() - began) < moment:
            if self.over.wait(min(0.2, moment - gone)) or not carriers():
                self.took = time.monotonic() - began
                return
        workers = sorted(self.cluster.worker_nodes, key=id)
        if workers and self.chance.random() < 0.3:
            self.killed = "a raylet"
            self.cluster.remove_node(workers[0], allow_graceful=False)
        elif left := carriers():
            self.killed = "a worker"
            self.chance.choice(left).kill()


@pytest.mark.parametrize(("name", "seed"), KILLS)
def test_one_kill(tmp_path, capsys, cluster, expected, name, seed):
    wanted, call = expected(name), calls()[name]
    chance, span = random.Random(f"{seed} {name}"), call.span
    for n in range(12):  # workers may be gone before their moment comes: then the next one comes sooner
        if not cluster.worker_nodes:
            add_raylet(cluster)
            cluster.wait_for_nodes()
        killer = Killer(cluster, chance, span)
        killer.start()
        code = done(call, tmp_path / f"out{n}", cluster.address)
        killer.over.set()
        killer.join()
        said = capsys.readouterr().err
        with capsys.disabled():
            print(
                f"\n{name} {seed}: {killer.killed or 'nothing'} killed, exit code {code}", end=" ", flush=True
            )
        assert_sound(code, said, tmp_path / f"out{n}", name, wanted)
        if killer.killed:
            return
        span = 0.7 * min(span, killer.took)
    pytest.fail("nothing was killed")


def assert_sound(code, said, folder, name, wanted):
    if code == 0:
        assert found(folder) == wanted
    else:
        assert said.strip().splitlines()[-1].startswith("error: ")
        assert "Traceback" not in said
        assert not found(folder)
    if name in ("quantize", "several types", "convert", "splits"):  # others are gone on with
        assert not list(folder.glob("*.quantmill-*"))
    assert "may be left" not in said  # another raylet reaches what one had here
    assert not left_running()


def begun(call, folder, address):
    """A process that has workers."""
    pipe, words = subprocess.PIPE, words_of(call, folder)
    more = ["--threads", "1", f"--ray={address}", *call.on_ray]
    command = [sys.executable, "-m", "quantmill", *words, *more]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    while not carriers():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("name", ["quantize", "imatrix"])
def test_the_head_of_the_cluster_is_lost(tmp_path, expected, name):
    """And the workers, of which nobody tells then."""
    wanted, call = expected(name), calls()[name]
    with raylets(2) as cluster, begun(call, tmp_path, cluster.address) as process:
        assert process.stderr is not None
        assert next(line for line in process.stderr if " on Ray: " in line)
        cluster.head_node.kill_gcs_server()
        for lost in carriers():
            lost.kill()
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: the head of the Ray cluster at ")
    assert "Traceback" not in said
    assert not found(tmp_path)
    words = [*words_of(call, tmp_path), "--threads", "1", "--resume"]
    if name == "quantize":
        with raylets(1) as cluster:
            assert cli.main([*words, f"--ray={cluster.address}"]) == 0
    else:
        assert cli.main(words) == 0
    assert found(tmp_path) == wanted
    assert not left_running()


@pytest.mark.parametrize("name", calls())
def test_an_interrupt(tmp_path, cluster, expected, name):
    """Nothing is there, or, where it comes after all have their names, what is made without it."""
    wanted, call, chance = expected(name), calls()[name], random.Random(name)
    with begun(call, tmp_path, cluster.address) as process:
        time.sleep(chance.uniform(0, call.span / 2))
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    left = found(tmp_path)
    assert process.returncode == 130 or (left and process.returncode in (0, -signal.SIGINT))
    assert "Traceback" not in said
    assert all(wanted[file] == content for file, content in left.items())
    if name in ("quantize", "several types", "convert", "splits"):
        assert not list(tmp_path.glob("*.quantmill-*"))
    assert not left_running()
