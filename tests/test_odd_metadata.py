"""Metadata and configurations that no model has: one line with the key, whatever the command, and no traceback."""

import json
import shutil

import pytest

from quantmill.cli import main
from quantmill.gguf_io import open_source
from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from tests.support.measure_models import EXAMPLE, tiny, written_again

U32, F32, I32, STR, BOOL = (
    getattr(GGUFValueType, n) for n in ("UINT32", "FLOAT32", "INT32", "STRING", "BOOL")
)
ODD = [
    ("block_count", STR, "x", "qwen3moe.block_count is x, no whole number from 0 to 16777216"),
    ("attention.head_count", F32, float("inf"), "qwen3moe.attention.head_count is inf"),
    ("attention.head_count", BOOL, True, "qwen3moe.attention.head_count is True"),
    ("expert_count", I32, -1, "qwen3moe.expert_count is -1"),
    ("embedding_length", U32, 2**32 - 1, "qwen3moe.embedding_length is 4294967295"),
]
OF_MODELS = [
    ("attention.head_count", U32, 0, "transformers cannot build what its metadata describes"),
    ("attention.head_count", U32, 7, "metadata asks for"),
    ("expert_count", U32, 7, "metadata asks for"),
    ("expert_used_count", U32, 9, "qwen3moe.expert_used_count is 9, and 8 experts are there"),
    ("expert_used_count", U32, 0, "qwen3moe.expert_used_count is 0, and 8 experts are there"),
    ("context_length", F32, float("nan"), "qwen3moe.context_length is nan"),
    ("rope.freq_base", STR, "x", "transformers cannot build what its metadata describes"),
    ("attention.layer_norm_rms_epsilon", STR, "x", "transformers cannot build what its metadata describes"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((EXAMPLE / "evaluation.txt").read_text()[:9000])
    return path


def refused(capsys, words, *arguments):
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def odd(tmp_path, key, type, value):
    path = tmp_path / "odd.gguf"
    metadata = open_source(tiny("F16")).metadata
    written_again(tiny("F16"), path, metadata=metadata.replace(f"qwen3moe.{key}", MetaValue(type, value)))
    return path


@pytest.mark.parametrize(("key", "type", "value", "words"), ODD)
def test_numbers_that_no_plan_can_be_made_of(key, type, value, words, tmp_path, capsys):
    path = odd(tmp_path, key, type, value)
    if key != "embedding_length":  # which does not decide about types
        refused(capsys, words, "quantize", "-q", path, tmp_path / "out.gguf", "Q8_0")
        refused(capsys, words, "recipe", "-q", path)
    refused(capsys, words, "prune", "-q", path, "--layers", "1", "--to-hf", tmp_path / "hf")
    assert not (tmp_path / "out.gguf").exists()
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(("key", "type", "value", "words"), ODD + OF_MODELS)
def test_numbers_that_no_model_can_be_built_of(key, type, value, words, text, tmp_path, capsys):
    path = odd(tmp_path, key, type, value)
    few = ("--chunks", "1", "-t", "1")
    refused(capsys, words, "evaluate", "-q", "--text", text, "--ctx", "64", *few, path)
    refused(capsys, words, "prune", "-q", path, "--layers", "1", "--to-hf", tmp_path / "hf")


def test_an_architecture_that_is_no_text(tmp_path, capsys):
    path = tmp_path / "odd.gguf"
    metadata = open_source(tiny("F16")).metadata.replace("general.architecture", MetaValue(U32, 7))
    written_again(tiny("F16"), path, metadata=metadata)
    words = "no general.architecture"
    refused(capsys, words, "quantize", "-q", path, tmp_path / "out.gguf", "Q8_0")
    refused(capsys, words, "prune", "-q", path, "--layers", "1", "--to-hf", tmp_path / "hf")


def test_a_configuration_that_transformers_refuses(tmp_path, capsys):
    """It converts, for GGUF has no such key; but nobody could read the folder."""
    model = tmp_path / "model"
    shutil.copytree(EXAMPLE, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "router_aux_loss_coef": "x"}))
    words = "transformers cannot read its config.json (Validation error for field 'router_aux_loss_coef'"
    refused(capsys, words, "prune", "-q", model, "--layers", "1", "--to-hf", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
