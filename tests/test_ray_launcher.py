"""examples/ray-cluster.yaml: what Ray's launcher makes of it, without machines."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.raylets import ray_or_skip

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "ray-cluster.yaml"


@pytest.fixture(scope="module")
def config():
    ray_or_skip()
    import yaml

    return yaml.safe_load(FILE.read_text())


def taken(config):
    """As `ray up` goes through it before it asks any host. Raises what Ray raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_the_launcher_takes_it(config):
    prepared = taken(config)
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[key] == config[key]  # nothing of the launcher's defaults is left


def test_what_the_launcher_does_not_know_is_refused(config):
    from jsonschema import ValidationError

    for wrong in ({"max_worker": 3}, {"idle_timeout_minutes": "5"}, {"auth": {"ssh_users": "ubuntu"}}):
        with pytest.raises(ValidationError):
            taken({**config, **wrong})


@pytest.mark.parametrize("whose", ["head", "worker"])
def test_its_commands_are_rays_own(config, whose):
    """Options that `ray start` has, with values that it takes."""
    from ray.scripts.scripts import cli

    stop, start = config[f"{whose}_start_ray_commands"]
    for command in (stop, start):
        program, name, *options = shlex.split(command.replace("$RAY_HEAD_IP", "10.0.0.1"))
        assert Path(program).name == "ray"
        given = cli.commands[name].make_context(name, options).params
        if name == "start" and whose == "head":
            assert (given["head"], given["address"], given["port"]) == (True, None, 6379)
            assert given["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
        elif name == "start":
            assert (given["head"], given["address"]) == (False, "10.0.0.1:6379")


def test_what_it_installs_is_there_to_be_installed(config):
    extras = re.search(r"quantmill\[([\w,-]+)\]", " ".join(config["setup_commands"]))[1].split(",")
    known = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {"ray", "models"} <= set(extras) <= set(known)  # imatrix and evaluate run models on all hosts
