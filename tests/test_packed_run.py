"""Packed checkpoints in imatrix and evaluate: run as the GGUF that they become, they compute what the original does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quantmill.cli import main
from quantmill.gguf_io import open_source
from quantmill.gguf_io.convert import open_checkpoint
from quantmill.imatrix.store import load as load_imatrix
from quantmill.jobs import convert, quantize
from quantmill.models.model import load
from quantmill.recipe import Recipe
from tests.support.convert_models import edit
from tests.support.llama_model import LlamaModel
from tests.support.packed_models import write_packed

TOKENS = [1, 259, 17, 300, 42, 5, 199, 260, 7, 7, 88, 311, 123, 64, 250, 9]


def unpacked(directory: Path, out: Path) -> Path:
    """The same model with every weight in float32, as transformers reads it."""
    source = open_checkpoint(directory)
    out.mkdir()
    for file in directory.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    edit(out / "config.json", quantization_config=None)
    values = {}
    for name, reader in source._readers.items():
        rows = torch.from_numpy(np.array(reader.values(slice(None), slice(None))))
        values[name] = (
            (rows.view(torch.bfloat16) if reader.plain == "BF16" else rows).float().view(reader.shape)
        )
    save_file(values, out / "model.safetensors")
    return out


@pytest.mark.parametrize(
    "name",
    [
        *("fp8-cut-blocks", "gptq-4-reordered", "nvfp4-pack"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("nvfp4-modelopt", "int4-g32", "mxfp4-pack")
        ),
    ],
)
def test_logits_are_those_of_the_unpacked_model(name, tmp_path):
    directory = write_packed(name, tmp_path / "packed")
    ids = torch.tensor([TOKENS])
    found = load(directory).logits(ids)[0]
    expected = load(unpacked(directory, tmp_path / "plain")).logits(ids)[0]
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_llama_cpp_computes_nvfp4_with_its_factors(tmp_path):
    """The file of `convert` in llama.cpp itself, whose products round activations of NVFP4 to eight bits."""
    directory = write_packed("nvfp4-modelopt", tmp_path / "packed")
    convert.run(convert.Conversion(directory, tmp_path / "out.gguf"))
    expected = load(tmp_path / "out.gguf").logits(torch.tensor([TOKENS]))[0].numpy()
    with LlamaModel(tmp_path / "out.gguf") as model:
        found = model.logits(TOKENS)
    assert np.abs(found - expected).max() <= 3e-2 * np.abs(expected).max()


def test_imatrix_and_evaluate_take_a_packed_directory(tmp_path, capsys):
    """As the GGUF made of it: the same sums, the same perplexity."""
    directory = write_packed("nvfp4-pack", tmp_path / "packed")
    convert.run(convert.Conversion(directory, tmp_path / "out.gguf", "f32"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    sums, perplexities = [], []
    for model in (directory, tmp_path / "out.gguf"):
        out = tmp_path / f"{model.name}.imatrix.gguf"
        assert main(["imatrix", str(model), "-f", str(text), "-o", str(out), "--ctx", "32"]) == 0
        sums.append(load_imatrix(out))
        capsys.readouterr()
        assert main(["evaluate", str(model), "--text", str(text), "--ctx", "64", "--json"]) == 0
        perplexities.append(json.loads(capsys.readouterr().out)["models"][0]["ppl"]["value"])
    assert set(sums[0].entries) == set(sums[1].entries)
    assert len(sums[0].entries) == 16
    for name, entry in sums[0].entries.items():
        np.testing.assert_allclose(entry.in_sum2, sums[1].entries[name].in_sum2, rtol=1e-6)
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-6)


def test_compensation_refuses_factors_and_polish_moves_them(tmp_path, capsys):
    """Both the file and what it was made from have them."""
    directory = write_packed("nvfp4-modelopt", tmp_path / "packed")
    convert.run(convert.Conversion(directory, tmp_path / "base.gguf"))
    quantize.run(quantize.Job(str(directory), tmp_path / "small.gguf", Recipe("Q4_0")))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 900)
    learn = ["--calibration", str(text)]
    assert main(["quantize", str(directory), str(tmp_path / "out.gguf"), "Q4_0", "--compensate", *learn]) == 1
    assert "does not know the factors of NVFP4 weights" in capsys.readouterr().err
    polish = ["polish", str(tmp_path / "small.gguf"), "--base", str(tmp_path / "base.gguf"), *learn]
    assert main([*polish, "-o", str(tmp_path / "polished.gguf")]) == 0
    values = [
        {
            spec.name: source.read(spec.name).view("<f4")[0]
            for spec in source.specs()
            if spec.name.endswith(".scale")
        }
        for source in map(open_source, (tmp_path / "small.gguf", tmp_path / "polished.gguf"))
    ]
    assert values[0].keys() == values[1].keys()
    assert any((values[0][name] != values[1][name]).any() for name in values[0])
