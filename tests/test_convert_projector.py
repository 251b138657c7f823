"""convert --mmproj: the part of a model that sees, byte for byte as llama.cpp's converter makes it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quantmill.cli import app
from quantmill.gguf_io.convert import layout
from quantmill.gguf_io.convert.projector import Projector
from quantmill.gguf_io.convert.towers import TOWERS
from quantmill.gguf_io.errors import GGUFError
from quantmill.jobs import quantize
from quantmill.jobs.convert import Conversion
from quantmill.jobs.projector import run
from quantmill.recipe import Recipe
from tests.data.convert.make import digest_gguf
from tests.support.convert_models import DATA, edit, write_f32, write_model, write_shards, written_once
from tests.support.llama_model import embeddings_of_images
from tests.support.measure_families import random_model
from tests.support.projector_models import MODELS, tensors, write_projector

# Classes of a tower that another class's model stands for.
ALIKE = {
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen4ExpForConditionalGeneration",
}
GOLDEN = json.loads((DATA / "golden_projectors.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return written_once(write_projector, tmp_path_factory.mktemp)


def _is_slow(entry):
    """Which numbers a type becomes is known from some towers."""
    name, kind = entry.split()
    return kind in ("f32", "f16") and name not in ("gemma3", "qwen3-vl")


@pytest.mark.parametrize(
    "entry", [pytest.param(one, marks=pytest.mark.slow if _is_slow(one) else []) for one in GOLDEN]
)
def test_the_file_is_llama_cpps(entry, models, tmp_path):
    name, kind = entry.split()
    out = tmp_path / "mmproj.gguf"
    result = run(Conversion(models(name), out, kind))
    found = json.loads(json.dumps(digest_gguf(out)))
    assert _without_rounded(found) == _without_rounded(GOLDEN[entry])
    assert [list(part) for part in found.values()] == [list(part) for part in GOLDEN[entry].values()]
    assert (result.n_tensors, result.file_bytes) == (len(found["tensors"]), out.stat().st_size)


ROUNDED = "per_dim_scale.weight"  # correctly here, not always by torch


def _without_rounded(digests):
    kept = {}
    for name, (kind, shape, digest) in digests["tensors"].items():
        while len(shape) > 1 and shape[-1] == 1:  # as llama-quantize writes it, not the converter
            shape = shape[:-1]
        if name.endswith(
            "layer_scale.gamma"
        ):  # that llama.cpp's encoder does not take as its converter writes it
            shape = shape[-1:]
        kept[name] = [kind, shape, None if name.endswith(ROUNDED) else digest]
    return {**digests, "tensors": kept}


def test_scales_of_what_hears(models):
    projector = Projector(models("gemma4-hears"), "f32")
    stored = tensors("gemma4-hears")
    for layer in range(2):
        _, bits = stored[f"model.audio_tower.layers.{layer}.self_attn.per_dim_scale"]
        values = torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))
        found = projector.values(f"a.blk.{layer}.{ROUNDED}").ravel()
        np.testing.assert_allclose(found, torch.nn.functional.softplus(values).numpy(), rtol=2e-7)


# What llama.cpp's encoder gives the text part, where it is not 64: with deepstack, each of its layers' beside the last.
WIDTHS = {"gemma4": 256, "gemma4-clipped": 256, "gemma4-hears": 256, "qwen3-vl": 3 * 64}
# Tokens of an image, where there are not positions for as many as it would have by itself.
MOST = {"gemma4": 4, "gemma4-clipped": 4, "gemma4-hears": 4}
QUICK = ("gemma4", "lfm2-vl")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_llama_cpp_encodes_with_it(name, models, tmp_path):
    random_model(tmp_path, "llama", {"hidden_size": WIDTHS.get(name, 64), "num_hidden_layers": 1})
    out = tmp_path / "mmproj.gguf"
    run(Conversion(models(name), out, "f16"))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    text = write_f32(tmp_path, tmp_path / "text.gguf")
    one, other = embeddings_of_images(out, text, images, MOST.get(name, 0))
    assert np.isfinite(one).all()
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


HEARING = MODELS["gemma4-hears"]["config"]["audio_config"]


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        ({"hidden_size": "64"}, "hidden_size of audio_config must be a positive whole number"),
        (
            {"subsampling_conv_channels": [16]},
            "subsampling_conv_channels of audio_config must be two numbers",
        ),
        ({"num_hidden_layers": 1}, "has no place for model.audio_tower.layers.1."),
        (
            {"conv_kernel_size": 3},
            "depthwise_conv1d.weight has shape [64, 1, 5], config.json asks for [64, 1, 3]",
        ),
        ({"use_clipped_linears": False}, "has no place for model.audio_tower.layers.0."),
    ],
)
def test_what_hears_and_does_not_fit(audio, words, tmp_path):
    directory = write_projector("gemma4-hears", tmp_path / "model")
    edit(directory / "config.json", audio_config={**HEARING, **audio})
    with pytest.raises(GGUFError, match=re.escape(words)):
        Projector(directory)


def test_what_hears_is_all_there(tmp_path):
    directory = write_projector("gemma4", tmp_path / "model")
    edit(directory / "config.json", audio_config=HEARING)
    with pytest.raises(GGUFError, match=r"audio_tower\S+ \(a\.\S+\) is missing"):
        Projector(directory)


def test_command(models, tmp_path):
    out = tmp_path / "mmproj.gguf"
    ask = ["convert", str(models("gemma3")), str(out), "--mmproj", "--type", "f16"]
    looked = CliRunner().invoke(app, [*ask, "--dry-run", "--json"])
    assert looked.exit_code == 0, looked.output
    assert not out.exists()
    written = CliRunner().invoke(app, ask)
    assert written.exit_code == 0, written.output
    assert json.loads(looked.stdout)["bytes"] == out.stat().st_size


def test_options_of_the_text_part_are_refused(models, tmp_path):
    found = CliRunner().invoke(
        app, ["convert", str(models("gemma3")), str(tmp_path / "out.gguf"), "--mmproj", "--mtp"]
    )
    assert found.exit_code == 2
    assert "--mmproj takes no" in found.output


@pytest.mark.parametrize(
    ("kind", "digest"),
    [("Q8_0", "8f45381bd294961031310a929c2a0157"), ("Q4_K_M", "918e2a2ffff1ea068e884339e10e35d2")],
)
def test_quantized_as_llama_quantize_does(kind, digest, models, tmp_path):
    """digest: of what `llama-quantize mmproj.gguf out.gguf KIND` writes."""
    source, out = tmp_path / "mmproj.gguf", tmp_path / "out.gguf"
    run(Conversion(models("qwen3-vl"), source))
    quantize.run(quantize.Job(str(source), out, Recipe(kind)))
    assert hashlib.sha256(out.read_bytes()).hexdigest()[:32] == digest


def _without(directory: Path, name: str, tensor: str) -> None:
    found = tensors(name)
    del found[tensor]
    write_shards(directory, found)


VISION = MODELS["qwen3-vl"]["config"]["vision_config"]


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"hidden_size": 64}, "config.json asks for"),
        ({"hidden_size": "32"}, "hidden_size of vision_config must be a positive whole number"),
        ({"patch_size": 0}, "patch_size of vision_config must be a positive whole number"),
        ({"depth": 2}, "deepstack_visual_indexes is [0, 2]; the encoder has 2 layers"),
        ({"deepstack_visual_indexes": [0]}, "has no place for model.visual.deepstack_merger_list.1"),
        ({"depth": 4}, "blocks.3.norm1.weight (v.blk.3.ln1.weight) is missing (12 tensors"),
    ],
)
def test_what_does_not_fit_is_one_line(vision, words, tmp_path):
    directory = write_projector("qwen3-vl", tmp_path / "model")
    edit(directory / "config.json", vision_config={**VISION, **vision})
    with pytest.raises(GGUFError) as error:
        Projector(directory)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_incomplete_encoder_is_refused(tmp_path):
    directory = write_projector("gemma3", tmp_path / "model")
    _without(directory, "gemma3", "multi_modal_projector.mm_soft_emb_norm.weight")
    with pytest.raises(GGUFError, match=r"mm_soft_emb_norm\.weight .* is missing"):
        Projector(directory)


def test_without_the_preparation_of_images(tmp_path):
    directory = write_projector("gemma3", tmp_path / "model")
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(GGUFError, match=r"preprocessor_config\.json: image_mean must be a list of numbers"):
        Projector(directory)


def test_a_model_that_does_not_see(tmp_path):
    directory = write_model("llama", tmp_path / "model")
    with pytest.raises(
        GGUFError, match="has no vision_config, so this model does not see; leave out --mmproj"
    ):
        Projector(directory)
    edit(directory / "config.json", vision_config={"hidden_size": 64})
    with pytest.raises(
        GGUFError, match=r"LlamaForCausalLM is not supported.*convert_hf_to_gguf\.py --mmproj"
    ):
        Projector(directory)


@pytest.mark.parametrize(
    ("name", "part", "changed", "words"),
    [
        ("lfm2-vl", None, {"vision_feature_layer": 0}, "vision_feature_layer must be from -3 to -1, not 0"),
        (
            "lfm2-vl",
            None,
            {"projector_hidden_size": "48"},
            "config.json: projector_hidden_size must be a positive",
        ),
        ("lfm2-vl", None, {"projector_bias": False}, "projector_bias is False; llama.cpp has True only"),
        (
            "lfm2-vl",
            "vision_config",
            {"patch_size": 14},
            "patch_size of vision_config is 14; llama.cpp has 16",
        ),
        (
            "minimax-m3",
            "vision_config",
            {"num_attention_heads": 4},
            "head_size of vision_config is 40; llama.cpp has 80",
        ),
        (
            "kimi-k2.5",
            "vision_config",
            {"merge_kernel_size": [2]},
            "merge_kernel_size of vision_config must be two",
        ),
        (
            "gemma3n",
            "vision_config",
            {"architecture": "resnet50"},
            "architecture of vision_config is 'resnet50'",
        ),
        ("gemma3n", "vision_config", {"pairs_3": 2}, "timm_model.blocks.3.3.norm.weight"),
        (
            "gemma3n",
            "audio_config",
            {"sscp_conv_channel_size": 8},
            "sscp_conv_channel_size of audio_config must be",
        ),
        (
            "ling3-vl",
            "vision_config",
            {"disable_merger_proj": False},
            "disable_merger_proj of vision_config is False",
        ),
    ],
)
def test_settings_that_llama_cpp_does_not_take(name, part, changed, words, tmp_path):
    directory = write_projector(name, tmp_path / "model")
    config = MODELS[name]["config"]
    edit(directory / "config.json", **({part: {**config[part], **changed}} if part else changed))
    with pytest.raises(GGUFError, match=re.escape(words)):
        Projector(directory)


def test_a_budget_of_pixels_that_is_missing(tmp_path):
    directory = write_projector("glm-5.3", tmp_path / "model")
    edit(directory / "preprocessor_config.json", max_image_tokens=None)
    with pytest.raises(GGUFError, match=r"preprocessor_config\.json: max_image_tokens must be a positive"):
        Projector(directory)


def test_the_net_of_gemma_3n_is_timms():
    """The digest: of names and shapes of `timm.create_model("mobilenetv5_300m_enc").state_dict()`, sorted."""
    tower = next(one for one in TOWERS if "Gemma3nForConditionalGeneration" in one.classes)
    config, found = tower.completed({"text_size": 2048}), {}
    for tensor in tower.tensors:
        for number, _ in tensor.numbers(config) if tensor.numbers else ((0, 0),):
            shape = [layout.size(config, dimension) for dimension in tensor.shape.split()]
            found[tensor.name.format(number)] = shape
    net = "vision_tower.timm_model."
    lines = sorted(
        f"{name.removeprefix(net)} {shape}" for name, shape in found.items() if name.startswith(net)
    )
    assert len(lines) == 548
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == "7a7da71661a5dbab103ed5bc1ab57484"


def test_the_docs_name_every_tower():
    page = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    part = page[page.index("## What sees") : page.index("## What is missing")]
    assert [name for tower in TOWERS for name in tower.classes if f"`{name}`" not in part] == []
    assert {model["config"]["architectures"][0] for model in MODELS.values()} | ALIKE == {
        name for tower in TOWERS for name in tower.classes
    }
