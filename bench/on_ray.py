"""What Ray costs: `python -m bench.on_ray MODEL TYPE[,TYPE...] --work DIR [--hosts N] [-- WORDS...]`.

In turns, on a cluster of N raylets of one processor each that runs already, and on one thread of this machine: the same
files, which must be equal. Wall seconds, and CPU seconds of the command and of all of the cluster's processes. WORDS:
further ones of both commands.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import shutil
import statistics
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import machine, process, tables


@dataclass(frozen=True)
class Row:
    """Medians of the rounds. share, wall_share: seconds over those without Ray."""

    way: str
    rounds: int
    cpu_s: float
    wall_s: float
    share: float
    wall_share: float


_COLUMNS = (
    tables.Column("way", "way"),
    tables.Column("rounds", "rounds", "{:d}"),
    tables.Column("CPU, s", "cpu_s", "{:.2f}"),
    tables.Column("wall, s", "wall_s", "{:.2f}"),
    tables.Column("CPU against no Ray", "share", "{:.2f} ×"),
    tables.Column("wall against no Ray", "wall_share", "{:.2f} ×"),
)


class _Watch(threading.Thread):
    """CPU seconds of all processes below this one, looked at often, for those that end take theirs with them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._of: dict[tuple[int, float], float] = {}

    def run(self) -> None:
        while not self._over.wait(0.05):
            self._look()

    def _look(self) -> None:
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                self._of[one.pid, one.create_time()] = times.user + times.system

    def __enter__(self) -> _Watch:
        self._look()
        self._before = dict(self._of)
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()

    @property
    def seconds(self) -> float:
        return sum(found - self._before.get(key, 0.0) for key, found in self._of.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("type")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options, further = parser.parse_args(given[:end]), given[end + 1 :]
    here = machine.describe("bench.on_ray", given)
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    options.work.mkdir(parents=True, exist_ok=True)
    folders = {"no Ray": options.work / "here", "on Ray": options.work / "there"}
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in folders}
    try:
        for _ in range(options.hosts - 1):
            cluster.add_node(**node)
        for _ in range(options.rounds):
            for way, folder in folders.items():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                words = ["--threads", "1"] if way == "no Ray" else [f"--ray={cluster.address}"]
                output = str(folder / "{type}.gguf") if "," in options.type else str(folder / "x.gguf")
                command = ["-m", "quantmill", "quantize", str(options.model), output, options.type]
                command += [*further, *words]
                with _Watch() as watch:
                    used = process.run([sys.executable, *command])
                found[way].append((watch.seconds, used.wall_s))
            for file in folders["no Ray"].iterdir():
                if not filecmp.cmp(file, folders["on Ray"] / file.name, shallow=False):
                    sys.exit(f"{file.name}: the files differ")
    finally:
        cluster.shutdown()
    medians = {
        way: [statistics.median(run[i] for run in runs) for i in range(2)] for way, runs in found.items()
    }
    rows = [
        Row(
            f"{way}, {options.hosts} hosts" if way == "on Ray" else way,
            options.rounds,
            cpu,
            wall,
            cpu / medians["no Ray"][0],
            wall / medians["no Ray"][1],
        )
        for way, (cpu, wall) in medians.items()
    ]
    tables.report(
        options.out, f"{options.type} of {options.model.name}, with Ray and without", here, _COLUMNS, rows
    )


if __name__ == "__main__":
    main()
