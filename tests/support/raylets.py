"""A small Ray cluster on this machine, for tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

STORE = 80 << 20  # bytes of a raylet's object store
_STARTS = 4
# Ray waits half a minute for a raylet, which a busy machine may not give it. It looks at this when it is imported.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "60")


def ray_or_skip() -> Any:
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'quantmill[ray]'")


def add_raylet(cluster: Any) -> Any:
    """One more, of a processor."""
    return _started(lambda: cluster.add_node(num_cpus=1, object_store_memory=STORE))


def minimal() -> None:
    """Ray as it is without `ray[default]`. A raylet ends itself where its agent has not begun within 15 seconds, which
    one with all of its parts does not on a busy machine."""
    import ray._private.utils

    ray._private.utils.get_dashboard_dependency_error = lambda: ImportError("left out")


@contextmanager
def raylets(n: int = 2) -> Iterator[Any]:
    """A cluster of n raylets with a processor each, the first one the head's."""
    ray = ray_or_skip()
    from ray.cluster_utils import Cluster

    minimal()
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    made = _started(lambda: Cluster(initialize_head=True, connect=False, head_node_args=head))
    try:
        for _ in range(n - 1):
            add_raylet(made)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def _started(start: Callable[[], Any]) -> Any:
    for left in reversed(range(_STARTS)):
        before = set(psutil.Process().children(recursive=True))
        here = os.getcwd()
        os.chdir("/")  # as on other hosts, a raylet's folder is not that of a command
        try:
            return start()
        except Exception as error:  # Ray has no class of its own for it
            if "timed out during startup" not in str(error) or not left:
                raise
        finally:
            os.chdir(here)
        for process in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.Error):
                process.kill()
    raise AssertionError
