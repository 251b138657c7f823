"""The checkpoint as a source: row slabs, transforms and their inverses, defaults of the configuration classes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from quantmill.gguf_io.convert import open_checkpoint, tensor_table
from quantmill.gguf_io.convert.families import family_of
from quantmill.gguf_io.convert.rules import Part, Rule, Values
from quantmill.gguf_io.convert.storage.numbers import FP8_VALUES
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.source import open_source
from tests.support.convert_models import DATA, HASH, MODELS, edit, tensors, write_model, write_shards

SHAPES = json.loads((DATA / "tensors.json").read_text())


def config_of(name):
    model = MODELS[name]
    numbers = HASH if name == "qwen4-exp" else {}
    return {"architectures": [model.architecture], "model_type": model.model_type, **model.config, **numbers}


@pytest.mark.parametrize("name", MODELS)
def test_slabs_are_parts_of_the_whole(name, tmp_path):
    source = open_checkpoint(write_model(name, tmp_path))
    random = np.random.RandomState(0)
    for spec in source.specs():
        whole = source.read(spec.name)
        assert whole.shape == (spec.n_rows, spec.row_bytes)
        for _ in range(4):
            first, end = sorted(random.randint(0, spec.n_rows + 1, 2))
            np.testing.assert_array_equal(source.read(spec.name, first, end - first), whole[first:end])


def test_unchanged_rows_are_not_copied(tmp_path):
    source = open_checkpoint(write_model("qwen2", tmp_path))
    assert not source.read("blk.0.ffn_up.weight", 3, 100).flags.owndata
    assert not source.read("blk.0.ffn_up.weight").flags.writeable


def test_open_source_takes_a_directory(tmp_path):
    source = open_source(write_model("qwen2", tmp_path))
    assert source.metadata.value("general.architecture") == "qwen2"
    assert [path.name for path in source.paths] == ["model.safetensors"]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_names_lead_back(name, library):
    """Hugging Face → GGUF → Hugging Face gives every tensor back that has a GGUF name."""
    shapes = {key: tuple(shape) for key, shape in SHAPES[name].items()}
    family = family_of(config_of(name))
    # A model that runs has its multipliers in its matrices.
    config = {key: value for key, value in config_of(name).items() if "multiplier" not in key}
    table = tensor_table(family, family.completed(config), shapes)
    random = np.random.RandomState(1)
    stored = {key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    empty = np.empty
    if library == "torch":
        stored = {key: torch.from_numpy(value) for key, value in stored.items()}
        empty = torch.empty
    converted = {key: table.to_gguf(key, stored.__getitem__) for key in table.views}
    for key, view in table.views.items():
        assert tuple(converted[key].shape) == view.stored_shape
    assert set(table.uses) | set(table.left_out) == set(shapes)
    for key, (use, *_) in table.uses.items():
        if table.views[use.name].product:  # of a model that is not run
            assert not family.runs
            one, other = (stored[source].reshape(-1) for source in table.views[use.name].sources)
            np.testing.assert_array_equal(converted[use.name], one * other)
        else:
            rows = table.views[use.name].rows
            kept = rows if name == "xlm-roberta" and isinstance(rows, slice) else slice(None)
            found = table.to_hf(key, converted.__getitem__, empty)
            np.testing.assert_allclose(found[kept], stored[key][kept], atol=1e-6)


def test_decays_behind_those_of_the_heads_are_padding(tmp_path):
    name, key = "kimi-k3-text", "language_model.model.layers.0.self_attn.A_log"
    found = tensors(name)
    decays = np.float32([0.1, 0.2, 0.3, 0.4, 9, 9, 9, 9])
    write_model(name, tmp_path)
    write_shards(tmp_path, found | {key: ("F32", decays.reshape(1, 1, 8, 1))})
    read = open_checkpoint(tmp_path).read("blk.0.ssm_a").view(np.float32).ravel()
    np.testing.assert_allclose(read, -np.exp(decays[:4]), rtol=1e-6)


def refusal(name, shapes):
    """The message with which a model of these tensors is refused; empty: it is not."""
    family = family_of(config_of(name))
    try:
        tensor_table(family, family.completed(config_of(name)), shapes)
    except GGUFError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_must_be_there_and_have_its_shape(name):
    shapes = {key: tuple(shape) for key, shape in SHAPES[name].items()}
    family = family_of(config_of(name))
    uses = tensor_table(family, family.completed(config_of(name)), shapes).uses
    assert refusal(name, shapes) == ""
    for tensor in uses:
        if name == "gpt-oss" and "_blocks" in tensor:
            continue
        without = {key: shape for key, shape in shapes.items() if key != tensor}
        assert "missing" in refusal(name, without), tensor
        for axis in range(len(shapes[tensor])):
            smaller = list(shapes[tensor])
            smaller[axis] -= 1
            found = refusal(name, shapes | {tensor: tuple(smaller)})
            assert (
                re.sub(r"experts\.\d+", "experts", tensor).split(".")[-2:][0] in found or "experts" in found
            ), tensor
            assert re.search(r"shape|there", found), found


def test_a_tensor_that_llama_cpp_has_no_place_for():
    shapes = {key: tuple(shape) for key, shape in SHAPES["llama"].items()}
    message = refusal("llama", shapes | {"model.layers.0.input_layernorm.bias": (256,)})
    assert (
        "input_layernorm.bias: llama.cpp's model of this architecture has no tensor blk.0.attn_norm.bias"
        in message
    )


def test_values_of_vectors_can_change_and_come_back():
    """As hybrid models need it: A = −exp(A_log)."""
    decay = Values(lambda values: -np.exp(values), lambda values: np.log(-values))
    rule = Rule(r"input_layernorm\.weight$", (Part(values=decay),))
    family = replace(family_of(config_of("qwen2")), rules=(rule,))
    shapes = {key: tuple(shape) for key, shape in SHAPES["qwen2"].items()}
    table = tensor_table(family, family.completed(config_of("qwen2")), shapes)
    stored = np.random.RandomState(1).standard_normal(256).astype(np.float32)
    converted = table.to_gguf("blk.0.attn_norm.weight", lambda name: stored)
    np.testing.assert_allclose(converted, -np.exp(stored), rtol=1e-6)
    back = table.to_hf("model.layers.0.input_layernorm.weight", lambda name: converted)
    np.testing.assert_allclose(back, stored, atol=1e-6)


def test_experts_one_by_one_and_fused_are_the_same_tensors(tmp_path):
    one_by_one = open_checkpoint(write_model("qwen3-moe", tmp_path / "a"))
    found = tensors("qwen3-moe")
    source = open_checkpoint(write_model("qwen3-moe-fused", tmp_path / "b"))
    assert {spec.name: spec.shape for spec in source.specs()} == {s.name: s.shape for s in one_by_one.specs()}
    gate = found["model.layers.0.mlp.experts.2.gate_proj.weight"][1]
    rows = one_by_one.read("blk.0.ffn_gate_exps.weight", 2 * len(gate), len(gate))
    np.testing.assert_array_equal(rows.view(np.uint16), gate)


def test_fp8_values_are_torchs():
    codes = torch.arange(256, dtype=torch.uint8)
    for name, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        np.testing.assert_array_equal(FP8_VALUES[name], codes.view(dtype).float().numpy())


SCALES = {"a scalar": (), "one": (1,), "one for each row": (512,), "a column": (512, 1)}


@pytest.mark.parametrize("shape", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("place", ["config.json", "hf_quant_config.json"])
def test_fp8_of_modelopt_is_codes_times_scales(tmp_path, shape, place):
    directory = write_model("qwen3", tmp_path)
    random = np.random.RandomState(2)
    found = tensors("qwen3")
    name = "model.layers.1.self_attn.q_proj.weight"
    codes = torch.randn(found[name][1].shape).to(torch.float8_e4m3fn)
    found |= {name: ("F8_E4M3", codes.view(torch.uint8).numpy())}
    scale = np.asarray(random.uniform(0.01, 0.02, shape), np.float32)
    found[f"{name}_scale"] = ("F32", scale)
    found[name.replace("weight", "input_scale")] = ("F32", np.float32(0.5).reshape(()))
    found[name.replace("q_proj.weight", "k_proj.k_scale")] = ("F32", np.float32(0.5).reshape(()))
    write_shards(directory, found)
    settings = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    if place == "config.json":
        edit(directory / place, quantization_config={"quant_method": "modelopt", **settings})
    else:
        (directory / place).write_text(
            json.dumps({"producer": {"name": "modelopt"}, "quantization": settings})
        )
    expected = codes.float() * torch.from_numpy(scale).reshape(-1, 1)
    rows = open_checkpoint(directory).read("blk.1.attn_q.weight").view(np.float32)
    np.testing.assert_array_equal(rows, expected.numpy())


def test_fp8_scales_may_be_powers_of_two(tmp_path):
    directory = write_model("deepseek-v3-fp8", tmp_path)
    found = tensors("deepseek-v3-fp8")
    name = "model.layers.0.self_attn.o_proj.weight"
    exponents = (
        np.random.RandomState(3).randint(100, 150, found[f"{name}_scale_inv"][1].shape).astype(np.uint8)
    )
    found[f"{name}_scale_inv"] = ("F8_E8M0", exponents)
    write_shards(directory, found)
    codes = torch.from_numpy(found[name][1]).view(torch.float8_e4m3fn).float()
    scales = torch.from_numpy(exponents).view(torch.float8_e8m0fnu).float()
    scales = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    rows = open_checkpoint(directory).read("blk.0.attn_output.weight").view(np.float32)
    np.testing.assert_array_equal(rows, (codes * scales).numpy())


def test_mxfp4_keeps_every_value(tmp_path):
    """The repacked blocks decode to the values of the checkpoint's own layout (MXFP4 of the OCP specification)."""
    from quantmill.qkernels import dequantize

    source = open_checkpoint(write_model("gpt-oss", tmp_path))
    codes = tensors("gpt-oss")["model.layers.0.mlp.experts.down_proj_blocks"][1]
    exponents = tensors("gpt-oss")["model.layers.0.mlp.experts.down_proj_scales"][1]
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    values = np.stack((e2m1[codes & 15], e2m1[codes >> 4]), axis=-1).reshape(*exponents.shape, 32)
    expected = values * np.exp2(exponents.astype(np.float32) - 127)[..., None]
    ours = dequantize(source.read("blk.0.ffn_down_exps.weight"), "MXFP4")
    np.testing.assert_array_equal(ours.ravel(), expected.ravel())


def test_tensors_that_predict_further_tokens_are_left_out_and_said(tmp_path):
    """Of families whose GGUF has no place for them."""
    directory, found = write_model("deepseek-v3", tmp_path), tensors("deepseek-v3")
    found["model.layers.2.eh_proj.weight"] = found["model.layers.1.self_attn.o_proj.weight"]
    write_shards(directory, found)
    (warning,) = open_checkpoint(directory).warnings
    assert warning.startswith("model.layers.2.eh_proj.weight and its like predict further tokens")


def test_a_draft_that_is_not_made_is_said(tmp_path):
    directory = write_model("deepseek-v4", tmp_path)
    with pytest.raises(
        GGUFError, match=r"mtp\.0\.norm\.weight and its like .* of which quantmill makes no draft"
    ):
        open_checkpoint(directory, later="only")


def test_layers_that_predict_further_tokens_are_left_out_or_stand_alone(tmp_path):
    directory = write_model("qwen3.5-further-nextn", tmp_path / "a")
    with_them, without = open_checkpoint(directory), open_checkpoint(directory, later="without")
    layer = {spec.name for spec in with_them.specs() if spec.name.startswith("blk.4.")}
    assert {"blk.4.nextn.eh_proj.weight", "blk.4.attn_q.weight", "blk.4.ffn_down.weight"} < layer
    assert {spec.name for spec in without.specs()} == {spec.name for spec in with_them.specs()} - layer
    assert (without.metadata.value("qwen35.block_count"), with_them.metadata.value("qwen35.block_count")) == (
        4,
        5,
    )
    assert without.warnings == ()
    draft = {spec.name for spec in open_checkpoint(directory, later="only").specs()}
    assert draft == layer | {"token_embd.weight", "output_norm.weight", "output.weight"}
    with pytest.raises(GGUFError, match="has no layers that predict further tokens"):
        open_checkpoint(write_model("qwen3.5", tmp_path / "b"), later="only")
    with pytest.raises(GGUFError, match="architecture alone; leave out --nextn-only"):
        open_checkpoint(write_model("exaone-moe-nextn", tmp_path / "c"), later="only")
