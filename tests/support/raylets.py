"""A small Ray cluster on this machine, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STORE = 80 << 20  # bytes of a raylet's object store


def add_raylet(cluster: Any) -> Any:
    """One more, of a processor."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE)


@contextmanager
def two_raylets(ray: Any) -> Iterator[Any]:
    """A cluster of two raylets with a processor each, one of them the head's."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        add_raylet(made)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
