"""Hosts of a Ray cluster that have their own network, name and disks: Linux namespaces of this machine, for tests."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.raylets import STORE

_ROOT = Path(__file__).parents[2]
_NUMBERS = itertools.count()  # tests side by side have networks of their own
_NETWORK = "10.231.77"
_PORT = 6379
_RAY = (
    "import sys; from tests.support.raylets import minimal; minimal(); "
    "from ray.scripts.scripts import main; sys.exit(main())"
)
# Who does not answer is given up in seconds instead of minutes.
_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "2000",
    "RAY_raylet_start_wait_time_s": "60",
}
_STARTS = 4  # Ray gives itself half a minute
_BEGIN = 120.0  # seconds for all of them


@dataclass(frozen=True)
class Host:
    """space: its network's name here; process: of Ray there, all of whose processes lie below it."""

    name: str
    space: str
    process: subprocess.Popen[bytes]

    def started(self, *command: str) -> subprocess.Popen[str]:
        """A command there."""
        inside = ["nsenter", f"--target={self.process.pid}", "--net", "--mount", "--uts", "--", *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(inside, stdout=pipe, stderr=pipe, text=True, cwd=_ROOT, env=_environment())

    def cut_off(self) -> None:
        """Take its link down."""
        _must("ip", "-n", self.space, "link", "set", "eth0", "down")

    def pids(self) -> list[int]:
        """Of all that runs there."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def path(self, there: Path) -> Path:
        """A file of that host, from here."""
        return Path(f"/proc/{self.process.pid}/root{there}")


@dataclass(frozen=True)
class Hosts:
    """own: a folder that is a disk of its own on each host; small: of the last host one of 1 MiB; hidden: it sees
    nothing of what the others see there."""

    all: tuple[Host, ...]
    address: str
    own: Path
    small: Path
    hidden: Path


def _environment() -> dict[str, str]:
    return {**os.environ, **_SETTINGS, "PYTHONUNBUFFERED": "1"}


def _must(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def network(n: int) -> Iterator[list[str]]:
    """The names of n namespaces, joined by a bridge. Skips where this machine does not allow it."""
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing or os.geteuid():
        pytest.skip(f"namespaces need root and {', '.join(missing) or 'nothing else'}")
    own = f"qm{os.getpid()}-{next(_NUMBERS)}"
    bridge, spaces = f"{own}b", [f"{own}-{i}" for i in range(n)]
    with ExitStack() as undo:

        def made(*command: str, undone: tuple[str, ...]) -> None:
            _must("ip", *command)
            undo.callback(subprocess.run, ["ip", *undone], check=False, capture_output=True)

        try:
            made("link", "add", bridge, "type", "bridge", undone=("link", "del", bridge))
            _must("ip", "link", "set", bridge, "up")
            for i, space in enumerate(spaces):
                made("netns", "add", space, undone=("netns", "del", space))
                ends = (f"{space}o", "type", "veth", "peer", "name", "eth0", "netns", space)
                made(
                    "link", "add", *ends, undone=("link", "del", f"{space}o")
                )  # a namespace goes later than it says
                _must("ip", "link", "set", f"{space}o", "master", bridge, "up")
                inside = ("ip", "-n", space)
                _must(*inside, "addr", "add", f"{_NETWORK}.{i + 1}/24", "dev", "eth0")
                _must(*inside, "link", "set", "eth0", "up")
                _must(*inside, "link", "set", "lo", "up")
                _must(*inside, "route", "add", "default", "dev", "eth0")  # Ray asks which way it would go out
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no namespaces can be made here: {error.stderr.strip()}")
        yield spaces


@contextmanager
def hosts(n: int) -> Iterator[Hosts]:
    """A cluster of n hosts, the first one its head."""
    names = [f"qm{i}" for i in range(n)]
    base = Path(tempfile.mkdtemp(prefix="qm-", dir="/tmp"))  # short, for Ray's sockets lie in it
    own, small, hidden = base / "own", base / "small", base / "hidden"
    for folder in (own, small, hidden):
        folder.mkdir()
    address = f"{_NETWORK}.1:{_PORT}"
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, base, ignore_errors=True)
        spaces = undo.enter_context(network(n))
        known = "".join(f"{_NETWORK}.{i + 1} {name}\n" for i, name in enumerate(names))
        (base / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        started = []
        for i, (name, space) in enumerate(zip(names, spaces, strict=True)):
            mounts = [f"mount --bind {base}/hosts /etc/hosts", f"mount -t tmpfs -o size=256m own {own}"]
            if i == n - 1:
                mounts += [f"mount -t tmpfs -o size=1m small {small}", f"mount -t tmpfs hidden {hidden}"]
            where = (
                ["--head", f"--port={_PORT}", f"--temp-dir={base}/ray", "--include-dashboard=false"]
                if i == 0
                else [f"--address={address}"]
            )
            where += [
                f"--node-ip-address={_NETWORK}.{i + 1}",
                "--num-cpus=1",
                f"--object-store-memory={STORE}",
            ]
            options = [*where, "--disable-usage-stats", "--block"]
            prepare = f"hostname {name}; {'; '.join(mounts)}"
            host = _started(name, space, prepare, options, base / f"{name}.log")
            undo.callback(_stop, host)
            started.append(host)
        yield Hosts(tuple(started), address, own, small, hidden)


def _started(name: str, space: str, prepare: str, options: list[str], log: Path) -> Host:
    for _ in range(_STARTS):
        shell = f'{prepare}; exec "$@"'
        command = ["ip", "netns", "exec", space, "unshare", "--mount", "--uts", "sh", "-ec", shell, "sh"]
        with log.open("wb") as said:
            process = subprocess.Popen(
                [*command, sys.executable, "-c", _RAY, "start", *options],
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                env=_environment(),
            )
        host = Host(name, space, process)
        if _has_begun(host, log):
            return host
        _stop(host)
    raise AssertionError(f"{name}: Ray does not start: {log.read_text()[-2000:]}")


def _has_begun(host: Host, log: Path) -> bool:
    deadline = time.monotonic() + _BEGIN
    while time.monotonic() < deadline and host.process.poll() is None:
        time.sleep(0.5)
        if "will now block forever" in log.read_text():
            return True
    return False


def _stop(host: Host) -> None:
    """All that runs in the namespace, which is ours alone."""
    for pid in host.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    host.process.kill()
    host.process.wait()
