"""As much of Ray as a crew needs, on threads of this process: what is sent is pickled, actors can be lost or slow."""

import pickle
import socket
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

from quantmill.jobs.quantize_request import Job


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class ObjectLostError(RayError):
    pass


class GetTimeoutError(RayError):
    pass


class RayTaskError(RayError):
    pass


def require_from_root(sent):
    """Workers run in other folders."""
    if isinstance(sent, Job):
        require_from_root([Path(one) for one in (sent.source, sent.imatrix) if one is not None])
    if isinstance(sent, Path):
        assert sent.is_absolute(), sent
    elif is_dataclass(sent):
        require_from_root([getattr(sent, one.name) for one in fields(sent)])
    elif isinstance(sent, (tuple, list)):
        for one in sent:
            require_from_root(one)


STORE = {}
HERE = threading.local()  # node: of the actor whose thread this is


class Ref:
    """Of an object in the store."""

    def __init__(self, number):
        self.number = number

    def hex(self):
        return str(self.number)


class Answer:
    """Of a call."""

    def __init__(self, found):
        self.found = found

    def future(self):
        return self.found


class Actor:
    """slow: seconds that each piece takes longer; answers: when it is lost, None: never."""

    def __init__(self, cluster, node, kind, task, at_once):
        self.cluster, self.node = cluster, node
        self.dead = threading.Event()
        self.unanswered = set()
        self.n_pieces = 0
        require_from_root(task)
        self.pool = ThreadPoolExecutor(at_once, initializer=lambda: setattr(HERE, "node", node))
        self.made = self.pool.submit(lambda: kind(pickle.loads(pickle.dumps(task))))
        for name in ("ready", "carry", "finish"):
            setattr(self, name, SimpleNamespace(remote=lambda *given, name=name: self.call(name, given)))

    def call(self, name, given):
        answer = Future()
        self.unanswered.add(answer)
        require_from_root(given)
        given = pickle.dumps(given)

        def work():
            if self.dead.is_set():
                return
            carrier = self.made.result()
            if name == "carry":
                self.n_pieces += 1
                with self.cluster.lock:
                    self.cluster.carried += 1
                    number = self.cluster.carried
                time.sleep(self.cluster.slow.get(self.node, 0))
                if number in self.cluster.losses:
                    self.lose()
                    return
            # models are not loaded by several threads at once; processes of their own do
            alone = self.cluster.loading if name == "ready" else nullcontext()
            try:
                with alone:
                    made = getattr(carrier, name)(*pickle.loads(given))
                found = pickle.loads(pickle.dumps(made))
            except Exception as error:  # noqa: BLE001 - as Ray does
                self.settle(answer, RayTaskError(repr(error)))
            else:
                self.settle(answer, found)

        if self.dead.is_set():
            self.settle(answer, RayActorError("dead"))
        else:
            self.pool.submit(work)
        return Answer(answer)

    def settle(self, answer, found):
        if answer in self.unanswered:
            self.unanswered.discard(answer)
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

    def lose(self):
        self.dead.set()
        for answer in list(self.unanswered):
            self.settle(answer, RayActorError("lost"))


class Cluster:
    """Stands for the module `ray`. slow: seconds by node; losses: numbers of pieces at which their actor is lost;
    memory: bytes by node, where it is not 4 GiB; gone: nodes that are lost."""

    def __init__(self, n_nodes, cpus=1, slow=None, losses=(), memory=None):
        self.memory = memory or {}
        self.n_nodes, self.cpus, self.slow, self.losses = n_nodes, cpus, slow or {}, set(losses)
        self.carried, self.lock, self.loading = 0, threading.Lock(), threading.Lock()
        self.actors, self.gone = [], set()
        self.namespace = None  # of the connection
        self.head = socket.create_server(("127.0.0.1", 0))  # to be closed where it is lost
        weakref.finalize(self, self.head.close)
        self.address = "{}:{}".format(*self.head.getsockname())
        names = (RayError, RayActorError, ObjectLostError, GetTimeoutError, RayTaskError)
        self.exceptions = SimpleNamespace(**{one.__name__: one for one in names})
        affinity = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *given, **more: (given, more))
        self.util = SimpleNamespace(scheduling_strategies=affinity)

    def is_initialized(self):
        return self.namespace is not None

    def get_runtime_context(self):
        return SimpleNamespace(gcs_address=self.address, namespace=self.namespace)

    def init(self, namespace, **options):
        self.namespace = namespace

    def shutdown(self):
        for actor in self.actors:
            actor.lose()
        self.namespace = None

    def nodes(self):
        return [
            {
                "NodeID": f"n{i}",
                "NodeManagerHostname": f"host{i}",
                "Alive": f"n{i}" not in self.gone,
                "Resources": {"CPU": self.cpus, "memory": self.memory.get(f"n{i}", 4 << 30)},
            }
            for i in range(self.n_nodes)
        ]

    def remote(self, kind):
        def options(scheduling_strategy, max_concurrency, memory, **others):
            (node,), more = scheduling_strategy
            assert memory <= self.memory.get(node, 4 << 30)  # Ray would wait for it for ever

            def make(task):
                there = node
                if node in self.gone and more["soft"]:
                    there = next(one["NodeID"] for one in self.nodes() if one["Alive"])
                self.actors.append(Actor(self, there, kind, task, max_concurrency))
                if there in self.gone:
                    self.actors[-1].lose()
                return self.actors[-1]

            return SimpleNamespace(remote=make)

        return SimpleNamespace(options=options)

    def get(self, asked, timeout=None):
        if isinstance(asked, Ref):
            return STORE[asked.number]
        try:
            return asked.found.result(timeout)
        except TimeoutError:
            raise GetTimeoutError from None

    def put(self, value):
        STORE[len(STORE)] = value
        return Ref(len(STORE) - 1)

    def kill(self, actor):
        actor.lose()
