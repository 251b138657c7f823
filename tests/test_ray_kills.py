"""Workers and raylets killed at random moments of all jobs: the same bytes or a clean error, and nothing left running.

One kill by hand: `pytest -m slow tests/test_ray_kills.py -k seed7-`.
"""

import contextlib
import json
import random
import threading

import pytest

from quantmill import cli
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.raylets import add_raylet, two_raylets

pytestmark = pytest.mark.slow

TEXT = str(EXAMPLE / "calibration.txt")
FEW = ["--ctx", "64", "--chunks", "16"]
JOBS = {
    "quantize": ["quantize", str(tiny("F16")), "{}.gguf", "Q4_K_M", "--max-buffer-size", "1"],
    "imatrix": ["imatrix", str(tiny("Q8_0")), "-f", TEXT, *FEW, "-o", "{}.gguf"],
    "evaluate": [
        "evaluate",
        str(tiny("Q4_0")),
        "--base",
        str(tiny("F16")),
        "--text",
        TEXT,
        *FEW,
        "-o",
        "{}.json",
    ],
    "compensate": [
        *["quantize", str(tiny("F16")), "{}.gguf", "Q4_K_M", "--compensate"],
        *["--calibration", TEXT, "--chunks", "10"],
    ],
}


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'quantmill[ray]'")
    with two_raylets(ray) as made:
        yield made


def found(path):
    """What decides: bytes of a model, numbers of an evaluation."""
    if path.suffix == ".json":
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("models", "base")}
    return path.read_bytes()


def done(words, stem, *more):
    words = [word.format(stem) for word in words]
    code = cli.main([*words, "--threads", "1", *more])
    return code, next(stem.parent.glob(f"{stem.name}.*"), None)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    directory = tmp_path_factory.mktemp("expected")
    known = {}

    def of(job):
        if job not in known:
            code, path = done(JOBS[job], directory / job)
            assert code == 0
            known[job] = found(path)
        return known[job]

    return of


def carriers():
    import psutil

    running = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "Carrier" in " ".join(process.cmdline()):
                running.append(process)
    return running


class Killer(threading.Thread):
    """Kills one worker, or a raylet and all below it, when some worker has begun and a random time has passed."""

    def __init__(self, cluster, chance):
        super().__init__(daemon=True)
        self.cluster, self.chance, self.over = cluster, chance, threading.Event()
        self.killed = ""

    def run(self):
        while not self.over.wait(0.2):
            if carriers():
                break
        if self.over.wait(self.chance.uniform(0, 10)):
            return
        workers = sorted(self.cluster.worker_nodes, key=id)
        if workers and self.chance.random() < 0.3:
            self.killed = "a raylet"
            self.cluster.remove_node(workers[0], allow_graceful=False)
        elif running := carriers():
            self.killed = "a worker"
            self.chance.choice(running).kill()


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("seed", range(13), ids="seed{}".format)
def test_one_kill(tmp_path, capsys, cluster, expected, seed, job):
    wanted = expected(job)
    if not cluster.worker_nodes:
        add_raylet(cluster)
    killer = Killer(cluster, random.Random(f"{seed} {job}"))
    killer.start()
    code, path = done(JOBS[job], tmp_path / "out", f"--ray={cluster.address}")
    killer.over.set()
    killer.join()
    said = capsys.readouterr().err
    print(f"{job} {seed}: {killer.killed or 'nothing'} killed, exit code {code}")
    if code == 0:
        assert found(path) == wanted
    else:
        assert said.strip().splitlines()[-1].startswith("error: ")
        assert "Traceback" not in said
        assert path is None or not path.exists()
    assert not carriers()
