"""The way to a Ray cluster, and plain words for what can be wrong with it. Ray is imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from quantmill.errors import MissingPackageError, last_line, one_line
from quantmill.jobs.errors import ClusterError, HeadLost
from quantmill.jobs.head import reached, require_head

AUTO = "auto"  # the cluster that runs on this machine, else one that lives as long as the job
_STORE_BYTES = 200 << 20  # what a cluster of our own keeps for objects: tasks and answers are small
_NAMESPACE = "quantmill"  # tells a connection of ours
_PATIENCE = 5.0  # seconds
_GREETING = 20.0  # the same, for a busy head
_SETTINGS = b"\x04"  # the type of HTTP/2's first frame, behind three bytes of its length
_EMPTY_SETTINGS = bytes(3) + _SETTINGS + bytes(5)
_WHOSE = ("the cluster has", "this process has")  # versions, in the order in which Ray says them
# Seconds without the head after which Ray ends this process, in which something may run that needs no cluster now.
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s", str(10**6)
_STARTS = 3  # of a cluster of our own: Ray waits half a minute for it, and does not let that be changed


@dataclass(frozen=True)
class Node:
    """A host of the cluster. id: Ray's; cpus, gpus, memory (in bytes): what it offers."""

    id: str
    name: str
    cpus: int
    gpus: int
    memory: int


def ray_module() -> Any:
    """Raises MissingPackageError."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingPackageError(
            f"--ray needs Ray ({one_line(error)}): pip install 'quantmill[ray]'"
        ) from None


@contextmanager
def connected(address: str, threads: int | None) -> Iterator[Any]:
    """Ray, connected to the cluster at HOST:PORT, or AUTO; at the end the connection is closed, and with it a cluster
    that was started for it. threads: of such a cluster. Where quantmill is connected already, that is what is given.

    Raises ClusterError: no cluster there, versions that differ.
    """
    ray = ray_module()
    if ray.is_initialized():
        if ray.get_runtime_context().namespace == _NAMESPACE:  # a job within a job
            yield ray
            return
        raise ClusterError("this process is connected to a Ray cluster already; call ray.shutdown() first")
    quiet = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    if address == AUTO:
        try:
            _connect(ray, AUTO, {"log_to_driver": False, "logging_level": "error"})
        except ConnectionError:
            _start(ray, {**quiet, "num_cpus": threads, "object_store_memory": _STORE_BYTES})
    else:
        require_listener(address)
        _connect(ray, address, {"log_to_driver": False, "logging_level": "error"})
    try:
        with _hushed(), _blaming_the_head(ray):
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _blaming_the_head(ray: Any) -> Iterator[None]:
    """Whatever stage asks for something, and whatever it blames: where the head does not answer, that is why."""
    address = head_of(ray)
    try:
        yield
    except HeadLost:
        raise
    except (ClusterError, ray.exceptions.RayError) as error:
        require_head(address)
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(f"the Ray cluster at {address}: {last_line(error)}") from error


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray writes on our standard output what it has to say of lost raylets, dozens of lines each, and has no option for
    it; what a loss means for the job the crew says."""
    worker, name = sys.modules.get("ray._private.worker"), "print_to_stdstream"
    loud = getattr(worker, name, None)  # not among Ray's public words
    if loud is None:
        yield
        return
    setattr(worker, name, lambda *given, **options: None)
    try:
        yield
    finally:
        setattr(worker, name, loud)


def _start(ray: Any, options: dict[str, Any]) -> None:
    """A cluster of our own, tried again where this machine is too busy for it."""
    for left in reversed(range(_STARTS)):
        try:
            _connect(ray, "local", options)
            return
        except Exception as error:  # Ray has no class of its own for it
            if "timed out during startup" not in str(error):
                raise
            if not left:
                raise ClusterError(
                    f"Ray did not start here in {_STARTS} times 30 s, for this machine is too busy; start it "
                    "beforehand (`ray start --head`), or give --ray the address of a cluster"
                ) from error


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        with _setting(*_RECONNECT):
            ray.init(address=address, namespace=_NAMESPACE, **options)
    except (ConnectionError, _of_tokens(ray)) as error:
        if _asks_for_token(error):
            raise ClusterError(
                f"--ray={address}: the cluster there asks for a token; set RAY_AUTH_MODE=token, and have the token of "
                "its head here (`ray get-auth-token` prints it on the head)"
            ) from error
        if address == AUTO:
            raise
        if "No node info found" in f"{error} {error.__cause__}":
            raise ClusterError(_no_host_of(ray, address)) from error
        raise ClusterError(f"no Ray cluster answers at {address}: {one_line(error)}") from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise ClusterError(f"{address}: Ray cannot connect: {one_line(error)}") from error
        found = re.findall(r"Ray: ?(\S+)\s+Python: ?(\S+)", str(error))
        both = [
            f"{whose} Ray {ray} and Python {python}"
            for whose, (ray, python) in zip(_WHOSE, found, strict=False)
        ]
        raise ClusterError(
            f"{address}: {', '.join(both) or one_line(error)}; install the same versions on both"
        ) from error


@contextmanager
def _setting(name: str, value: str) -> Iterator[None]:
    """One of Ray's that it takes from nowhere else, unless it is set already."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _no_host_of(ray: Any, address: str) -> str:
    """That the cluster knows nobody here, and where it can be asked that it has another Ray, which may be why."""
    try:
        client = importlib.import_module("ray._raylet").GcsClient(address=address)
        there = importlib.import_module("ray._common.usage.usage_lib").get_cluster_metadata(client)
    except (ImportError, AttributeError, RuntimeError, ray.exceptions.RayError):  # not Ray's public words
        there = None
    version = (there or {}).get("ray_version", ray.__version__)
    if version != ray.__version__:
        return f"{address}: the cluster has Ray {version}, this process has Ray {ray.__version__}; install the same"
    return (
        f"--ray={address}: this machine is no host of the cluster there; make it one with `ray start "
        f"--address={address}`, or give the command on one of its hosts"
    )


def _of_tokens(ray: Any) -> type[Exception]:
    """What Ray raises where a token is missing; older ones have none."""
    found: type[Exception] = getattr(ray.exceptions, "AuthenticationError", ConnectionError)
    return found


def _asks_for_token(error: BaseException) -> bool:
    """Ray says it of whatever led to the error."""
    said = f"{type(error).__name__} {error}"
    before = error.__cause__ or error.__context__
    return "authentication" in said.lower() or (before is not None and _asks_for_token(before))


def require_listener(address: str) -> None:
    """Raises ClusterError where nobody answers; Ray itself would ask for a minute."""
    if address == AUTO:
        return
    _, separator, port = address.rpartition(":")
    if "://" in address:
        raise ClusterError(
            f"--ray={address}: give HOST:PORT of the cluster's head, as `ray start --head` prints it"
        )
    if not separator or not port.isdecimal():
        raise ClusterError(f"--ray={address}: expected HOST:PORT, or nothing for the cluster of this machine")
    try:
        with reached(address, _PATIENCE) as there:
            is_ray = _speaks_grpc(there)
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({one_line(error)}); start one with `ray start --head`, or leave the "
            "address out"
        ) from error
    if not is_ray:
        raise ClusterError(
            f"no Ray cluster answers at {address}, but another program; `ray start --head` prints the address, usually "
            "with port 6379"
        )


def _speaks_grpc(there: socket.socket) -> bool:
    """Whether the other end greets as HTTP/2 does (RFC 9113, section 3.4), which carries Ray's calls; behind TLS it
    is not asked."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    there.settimeout(_GREETING)
    try:
        there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _EMPTY_SETTINGS)
        greeting = b""
        while len(greeting) < 4 and (more := there.recv(9)):
            greeting += more
    except OSError:
        return False
    return greeting[3:4] == _SETTINGS


def head_of(ray: Any) -> str:
    """HOST:PORT."""
    return str(ray.get_runtime_context().gcs_address)


def got(ray: Any, answer: Any, seconds: float, why_over: Callable[[], Exception | None]) -> Any:
    """What is answered. Raises what Ray raises, after so many seconds too, and why_over() when there is something."""
    until = time.monotonic() + seconds
    while True:
        left = until - time.monotonic()
        try:
            return ray.get(answer, timeout=max(0.0, min(left, 1.0)))
        except ray.exceptions.GetTimeoutError:
            if (error := why_over()) is not None:
                raise error from None
            if left <= 1.0:
                raise


def nodes(ray: Any) -> list[Node]:
    """Those that can work, in the order of their names."""
    found = []
    for node in ray.nodes():
        resources = node["Resources"]
        cpus = int(resources.get("CPU", 0))
        if node["Alive"] and cpus:
            gpus, memory = (int(resources.get(name, 0)) for name in ("GPU", "memory"))
            found.append(Node(node["NodeID"], node["NodeManagerHostname"], cpus, gpus, memory))
    return sorted(found, key=lambda node: (node.name, node.id))


def actors(ray: Any, kind: type, node: Node, memory: int, at_once: int, only_there: bool) -> Any:
    """What makes an actor of this kind on a host, with all of its processors, and answers so many calls at once."""
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=not only_there)
    return ray.remote(kind).options(
        num_cpus=node.cpus,
        num_gpus=node.gpus,
        memory=memory,
        max_restarts=0,
        max_concurrency=at_once,
        scheduling_strategy=there,
    )


def able(hosts: Sequence[Node], memory: int, warn: Callable[[str], None]) -> list[Node]:
    """Those that offer so many bytes; the others are named. Raises ClusterError where none is left."""
    found = []
    for node in hosts:
        if node.memory >= memory:
            found.append(node)
        else:
            warn(
                f"{node.name}: offers {node.memory >> 20} MiB to Ray, and a worker takes {memory >> 20}; the others go "
                "on without it (`ray start --memory BYTES` offers more)"
            )
    if not found:
        what = "that has the memory for a worker" if hosts else "with a processor to spare"
        raise ClusterError(f"the Ray cluster has no host {what}")
    return found
