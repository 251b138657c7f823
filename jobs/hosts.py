"""The hosts of a Ray cluster that are there now, whoever was lost meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantmill.jobs.cluster import Node, actors, head_of, nodes
from quantmill.jobs.errors import HeadLost
from quantmill.jobs.head import told_by_head


def living(ray: Any) -> list[Node]:
    """Raises HeadLost."""
    return told_by_head(head_of(ray), lambda: nodes(ray))


def place_of(ray: Any, wished: Node, host: str) -> Node:
    """Where an actor runs that was wished on a node and says that it runs on `host`: Ray takes another node where that
    one is gone."""
    try:
        there = living(ray)
    except HeadLost:
        return wished
    if any(node.id == wished.id for node in there):
        return wished
    return next((node for node in there if node.name == host), wished)


def errand(ray: Any, kind: type, node: Node) -> Any:
    """An actor on this node and no other, which takes nothing that workers need."""
    return actors(ray, kind, replace(node, cpus=0, gpus=0), 0, 1, only_there=True).remote(None)
