"""The way to a cluster: what belongs to --ray, and what is said of a cluster that is not there or does not fit."""

import re
import socket
import threading

import pytest

from quantmill import cli
from quantmill.jobs.errors import JobError
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.raylets import ray_or_skip


@pytest.fixture(scope="module")
def ray():
    return ray_or_skip()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_nobody_at_the_address(tmp_path, ray, capsys):
    port = free_port()
    words = ["quantize", str(tiny("F16")), str(tmp_path / "x.gguf"), "Q4_0"]
    for spelled in ([f"--ray=127.0.0.1:{port}"], ["--ray", f"127.0.0.1:{port}"]):
        assert cli.main([*words, *spelled]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: no Ray cluster answers at 127.0.0.1:{port}")  # nothing before
    for spelled, said in (
        (["--ray=nonsense"], "--ray=nonsense: expected HOST:PORT"),
        (["--ray", "127.0.0.1"], "--ray=127.0.0.1: expected HOST:PORT"),
        (["--ray", "ray://head:10001"], "--ray=ray://head:10001: give HOST:PORT"),
    ):
        assert cli.main([*words, *spelled]) == 1
        assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_somebody_else_at_the_address(tmp_path, ray, capsys, answer):
    """Ray itself would wait for minutes, without a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with server.accept()[0] as there:
                there.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert cli.main(["convert", str(EXAMPLE), str(tmp_path / "x.gguf"), "--ray", address]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"error: no Ray cluster answers at {address}, but another program; `ray start --head`"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["imatrix", "-f", "{text}", "-o", "{out}.gguf"],
        ["evaluate", "--text", "{text}", "-o", "{out}.json"],
        ["quantize", "{out}.gguf", "Q4_K_M", "--compensate", "--calibration", "{text}"],
        ["squeeze", "--types", "Q8_0", "--calibration", "{text}", "--evaluation", "{other}", "-o", "{out}"],
    ],
    ids=lambda words: words[0] if isinstance(words, list) else words,
)
def test_every_job_says_it_before_it_reads_the_model(tmp_path, ray, capsys, monkeypatch, words):
    from quantmill.models import model

    monkeypatch.setattr(model, "load", None)
    places = {
        "out": tmp_path / "x",
        "text": EXAMPLE / "calibration.txt",
        "other": EXAMPLE / "evaluation.txt",
    }
    command, *rest = (word.format(**places) for word in words)
    assert cli.main([command, str(tiny("Q8_0")), *rest, "--ray", f"127.0.0.1:{free_port()}"]) == 1
    assert capsys.readouterr().err.startswith("error: no Ray cluster answers at 127.0.0.1:")
    assert not list(tmp_path.glob("*.gguf"))


def test_an_address_belongs_to_the_word_before_it(tmp_path, monkeypatch):
    from quantmill.commands.options import _with_addresses

    monkeypatch.chdir(tmp_path)
    for words, wanted in (
        (["--ray", "head:6379", "a"], ["--ray=head:6379", "a"]),
        (["--ray", "[::1]:80"], ["--ray=[::1]:80"]),
        (["--ray", "model.gguf", "x:1"], ["--ray=auto", "model.gguf", "x:1"]),
        (["--ray=auto", "--ray"], ["--ray=auto", "--ray=auto"]),
        (["--", "--ray", "x:1"], ["--", "--ray", "x:1"]),
    ):
        assert _with_addresses(words) == wanted
    (tmp_path / "x:1").touch()
    assert _with_addresses(["--ray", "x:1"]) == ["--ray=auto", "x:1"]


def test_a_cluster_that_does_not_start_in_time_is_tried_again(ray, monkeypatch):
    from quantmill.jobs import cluster

    asked = []

    def init(address, **options):
        asked.append(address)
        raise (
            ConnectionError("none")
            if address == "auto"
            else Exception("The current node timed out during startup. This could happen because …")
        )

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(JobError, match="did not start here in 3 times 30 s"),
        cluster.connected(cluster.AUTO, 1),
    ):
        pass
    assert asked == ["auto", "local", "local", "local"]


def test_versions_that_differ_are_both_said(ray, monkeypatch):
    from quantmill.jobs import cluster

    def init(**options):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n    Python: 3.9.1\n"
            "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
        )

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(
            JobError,
            match=r"the cluster has Ray 2\.1\.0 and Python 3\.9\.1, this process has Ray 2\.60\.0 and Python 3\.11\.7;",
        ),
        cluster.connected(cluster.AUTO, 1),
    ):
        pass


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.1.0", "the cluster has Ray 2.1.0, this process has Ray"),
        (None, "--ray=head:6379: this machine is no host of the cluster there; make it one with `ray start"),
    ],
)
def test_a_machine_that_is_no_host_of_the_cluster(ray, monkeypatch, version, said):
    """Ray says the same of both, after a minute."""
    from ray._common.usage import usage_lib

    from quantmill.jobs import cluster

    def init(**options):
        raise ConnectionError("Failed to connect to Ray cluster") from RuntimeError(
            "No node info found matching"
        )

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("ray._raylet.GcsClient", lambda address: address)
    there = {"ray_version": version or ray.__version__}
    monkeypatch.setattr(usage_lib, "get_cluster_metadata", lambda client: there)
    monkeypatch.setattr(cluster, "require_listener", lambda address: None)
    with pytest.raises(JobError, match=re.escape(said)), cluster.connected("head:6379", 1):
        pass


@pytest.mark.parametrize("address", ["auto", "head:6379"])
def test_a_cluster_that_asks_for_a_token(ray, monkeypatch, address):
    """As `ray start --head` does, from 2.60 on, where one was made before; Ray's own error does not say it."""
    from quantmill.jobs import cluster

    def init(**options):
        try:
            raise ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken")
        except ray.exceptions.RayError as error:
            raise ConnectionError("Failed to connect to Ray cluster") from error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "require_listener", lambda address: None)
    with (
        pytest.raises(
            JobError, match=f"--ray={address}: the cluster there asks for a token; set RAY_AUTH_MODE=token"
        ),
        cluster.connected(address, 1),
    ):
        pass


def test_ray_itself_writes_nothing_on_our_output(ray, monkeypatch, capsys):
    """It belongs to a command's JSON."""
    from ray._private import worker

    from quantmill.jobs import cluster

    def say():
        worker.print_to_stdstream(
            {"lines": ["Raylet is terminated."], "pid": "raylet", "is_err": False}, False
        )

    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "require_listener", lambda address: None)
    monkeypatch.setattr(cluster, "head_of", lambda ray: "head:6379")
    with cluster.connected("head:6379", 1):
        say()
    assert capsys.readouterr().out == ""
    say()
    assert "Raylet is terminated." in capsys.readouterr().out


@pytest.mark.slow
def test_a_cluster_is_started_where_there_is_none(tmp_path, ray):
    for name, more in (("a", []), ("b", ["--ray"])):
        words = ["convert", str(EXAMPLE), str(tmp_path / f"{name}.gguf"), "--threads", "1"]
        assert cli.main([*words, *more]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
