"""quantmill convert, and quantizing a Hugging Face directory in one pass."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quantmill import cli
from quantmill.gguf_io.source import GGUFSource
from tests.support.convert_models import DATA, write_model

GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture
def model(tmp_path):
    return write_model("qwen3-moe", tmp_path / "Tiny-Model-1B-Instruct")


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_a_conversion_has_llama_cpps_tensors_and_keys(model, tmp_path):
    assert run("convert", model, tmp_path / "out.gguf") == 0
    found = GGUFSource(tmp_path / "out.gguf")
    golden = GOLDEN["qwen3-moe"]
    assert {spec.name: [spec.type, list(spec.shape)] for spec in found.specs()} == {
        name: row[:2] for name, row in golden["tensors"].items()
    }
    assert set(found.metadata) == set(golden["metadata"])
    assert found.metadata.value("general.file_type") == golden["metadata"]["general.file_type"][1]


def test_the_words_of_convert_hf_to_gguf(model, tmp_path):
    assert run("convert", model, "--outfile", tmp_path / "a.gguf", "--outtype", "f16") == 0
    assert run("convert", model, tmp_path / "b.gguf", "--type", "f16") == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_dry_run_writes_nothing(model, tmp_path, capsys):
    assert run("convert", "--dry-run", "--json", model, tmp_path / "out.gguf") == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out.gguf").exists()
    assert run("convert", model, tmp_path / "out.gguf") == 0
    assert planned["file_bytes"] == (tmp_path / "out.gguf").stat().st_size
    assert run("convert", "--dry-run", model, tmp_path / "no" / "out.gguf") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{model}"], "expected MODEL OUTPUT"),
        (["{model}", "a.gguf", "--outfile", "b.gguf"], "expected MODEL OUTPUT"),
        (["{model}", "a.gguf", "--type", "q4_k"], "--type q4_k: known: auto, f16, bf16, f32, q8_0"),
        (["{model}", "a.gguf", "--type", "fp16"], "--type fp16: did you mean f16?"),
    ],
)
def test_wrong_usage(model, capsys, words, says):
    assert run("convert", *(word.format(model=model) for word in words)) == 2
    assert says in capsys.readouterr().err


def test_a_weight_too_large_for_f16_names_an_option_of_convert(model, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    (shard,) = model.glob("*.safetensors")
    tensors = {name: values.float() for name, values in load_file(shard).items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][3, 5] = 1e5
    save_file(tensors, shard)
    assert run("convert", model, tmp_path / "out.gguf", "--type", "f16") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "blk.0.attn_q.weight: row 3: 1e+05 in column 5 is too large for F16" in line
    assert "(--type bf16 or --type f32)" in line
    assert run("convert", model, tmp_path / "out.gguf", "--type", "bf16") == 0


@pytest.mark.parametrize(("type", "number"), [("f32", 0), ("f16", 1), ("bf16", 32), ("q8_0", 7)])
def test_types(model, tmp_path, type, number, capsys):
    assert run("convert", model, tmp_path / "out.gguf", "--type", type, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["type"] == type.upper()
    found = GGUFSource(tmp_path / "out.gguf")
    assert found.metadata.value("general.file_type") == number
    kinds = {spec.name: spec.type for spec in found.specs()}
    assert kinds["blk.0.ffn_up_exps.weight"] == type.upper()
    assert kinds["blk.0.ffn_gate_inp.weight"] == kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("type", ["auto", "f16", "q8_0"])
def test_mxfp4_blocks_stay(tmp_path, type):
    assert run("convert", write_model("gpt-oss", tmp_path / "hf"), tmp_path / "out.gguf", "--type", type) == 0
    found = GGUFSource(tmp_path / "out.gguf")
    name = "blk.1.ffn_up_exps.weight"
    assert {spec.name: spec.type for spec in found.specs()}[name] == "MXFP4"
    from quantmill.gguf_io.convert import open_checkpoint

    np.testing.assert_array_equal(found.read(name), open_checkpoint(tmp_path / "hf").read(name))
    assert found.metadata.value("general.file_type") == (7 if type == "q8_0" else 38)


@pytest.mark.parametrize(
    ("name", "type"), [("qwen3-moe", "bf16"), ("deepseek-v3", "f32"), ("gemma2", "f16"), ("olmo2", "f32")]
)
def test_one_pass_is_the_bytes_of_two(name, type, tmp_path):
    """By way of a file that holds the checkpoint's values without loss."""
    directory = write_model(name, tmp_path / "hf")
    assert run("convert", directory, tmp_path / "plain.gguf", "--type", type) == 0
    assert run("quantize", tmp_path / "plain.gguf", tmp_path / "two.gguf", "Q4_K_M") == 0
    assert run("quantize", directory, tmp_path / "one.gguf", "Q4_K_M") == 0
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_nothing_is_left_behind_when_weights_are_not_finite(model, tmp_path, capsys):
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xc0\x7f"  # NaN in BF16
    path.write_bytes(data)
    assert run("convert", model, tmp_path / "out.gguf") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-directory"], "no-such-directory: no such file or directory"),
        (["{file}"], "is no directory; convert takes a Hugging Face model"),
        (["{model}", "--revision", "main"], "revisions belong to org/name"),
    ],
)
def test_wrong_arguments(arguments, message, model, tmp_path, capsys):
    places = {"{model}": str(model), "{file}": str(model / "config.json")}
    source, *options = (places.get(argument, argument) for argument in arguments)
    assert run("convert", source, tmp_path / "out.gguf", *options) == 1
    assert message in capsys.readouterr().err


def test_layers_that_predict_further_tokens(tmp_path, capsys):
    directory = write_model("glm-5-nextn", tmp_path / "model")
    found = {}
    for option in ("--type=f16", "--no-nextn", "--nextn-only"):
        assert run("convert", directory, tmp_path / f"{option}.gguf", option) == 0
        found[option] = {spec.name: spec.type for spec in GGUFSource(tmp_path / f"{option}.gguf").specs()}
    later = {name for name in found["--type=f16"] if name.startswith("blk.3.")}
    assert "blk.3.nextn.eh_proj.weight" in later
    assert found["--no-nextn"].keys() == found["--type=f16"].keys() - later
    assert later < found["--nextn-only"].keys()
    assert not any(name.startswith("blk.0.") for name in found["--nextn-only"])
    # llama.cpp's converter never makes halves of it
    assert found["--type=f16"]["blk.0.indexer.proj.weight"] == "F32"
    assert found["--type=f16"]["blk.0.indexer.attn_k.weight"] == "F16"
    assert run("convert", directory, tmp_path / "out.gguf", "--no-nextn", "--nextn-only") == 2
    assert "--no-nextn and --nextn-only cannot be used together" in capsys.readouterr().err


def test_org_name_is_downloaded_once_named(model, tmp_path, monkeypatch):
    """What is asked of huggingface_hub: the revision, no pickle, no other framework's weights."""
    import huggingface_hub

    snapshot = tmp_path / "models--example-org--Tiny-Model" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    asked = {}

    def snapshot_download(self, **options):
        asked.update(options)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", snapshot_download)
    assert run("convert", "example-org/Tiny-Model", tmp_path / "out.gguf", "--revision", "v2") == 0
    assert (asked["repo_id"], asked["revision"]) == ("example-org/Tiny-Model", "v2")
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["allow_patterns"])
    metadata = GGUFSource(tmp_path / "out.gguf").metadata
    assert metadata.value("general.name") == "Tiny Model"
    assert metadata.value("general.organization") == "Example Org"


def _http_error(kind):
    import httpx2  # what huggingface_hub speaks HTTP with
    from huggingface_hub import errors

    response = httpx2.Response(404, request=httpx2.Request("GET", "https://example.org"))
    return getattr(errors, kind)("no", response=response)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RepositoryNotFoundError", "neither a path here nor a model on the Hugging Face hub"),
        ("GatedRepoError", "access must be granted on huggingface.co first"),
        ("RevisionNotFoundError", "has no revision v9"),
        ("HfHubHTTPError", "cannot be downloaded"),
    ],
)
def test_hub_errors_are_one_line(kind, message, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    def snapshot_download(self, **options):
        raise _http_error(kind)

    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", snapshot_download)
    assert run("convert", "example-org/none", tmp_path / "out.gguf", "--revision", "v9") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
