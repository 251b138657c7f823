"""The checkpoint as a source: row slabs, transforms and their inverses, defaults of the configuration classes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from quantmill.gguf_io.convert import open_checkpoint, tensor_table
from quantmill.gguf_io.convert.families import FAMILIES, family_of
from quantmill.gguf_io.convert.rules import Part, Rule, Values
from quantmill.gguf_io.convert.stored import FP8_VALUES
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.source import open_source
from tests.support.convert_models import DATA, MODELS, edit, tensors, write_model, write_shards

SHAPES = json.loads((DATA / "tensors.json").read_text())


def config_of(name):
    model = MODELS[name]
    return {"architectures": [model.architecture], "model_type": model.model_type, **model.config}


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
    table = tensor_table(family, family.completed(config_of(name)), shapes)
    random = np.random.RandomState(1)
    stored = {key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    empty = np.empty
    if library == "torch":
        stored = {key: torch.from_numpy(value) for key, value in stored.items()}
        empty = torch.empty
    converted = {key: table.to_gguf(key, stored.__getitem__) for key in table.views}
    for key, view in table.views.items():
        assert tuple(converted[key].shape) == view.shape
    assert set(table.uses) | set(table.left_out) == set(shapes)
    for key in table.uses:
        np.testing.assert_allclose(table.to_hf(key, converted.__getitem__, empty), stored[key], atol=1e-6)


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
            assert re.sub(r"experts\.\d+", "experts", tensor).split(".")[-2] in found or "experts" in found, (
                tensor
            )
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


# What the conversion reads from a configuration, whichever class it is.
READ = (
    "tie_word_embeddings",
    "max_position_embeddings",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "norm_epsilon",
    "layer_norm_eps",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_group",
    "topk_group",
    "sliding_window",
    "layer_types",
    "logit_scale",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "n_shared_experts",
    "first_k_dense_replace",
    "routed_scaling_factor",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "original_max_position_embeddings",
)
SPARSE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.classes[0])
def test_defaults_are_those_of_the_configuration_class(family):
    """A config.json with the required keys only means to us what it means to transformers."""
    from transformers import CONFIG_MAPPING

    model_type = next(m.model_type for m in MODELS.values() if m.architecture == family.classes[0])
    theirs = CONFIG_MAPPING[model_type](**SPARSE).to_dict()
    ours = family.completed(SPARSE)
    for key in READ:
        if key == "num_local_experts" and key not in ours:
            assert ours.get("num_experts") == theirs.get(key, theirs.get("num_experts"))
        elif theirs.get(key) is not None and (key in ours or key != "layer_types"):
            if key in ("sliding_window", "layer_types") and key not in ours:
                continue  # written by no family that leaves it out
            if (key, model_type) in UNWRITTEN:
                continue
            assert ours.get(key) == theirs[key], key
    rope = theirs["rope_parameters"]
    for kind in ("full_attention", "sliding_attention"):
        mine, other = ours["rope_parameters"].get(kind, {}), rope.get(kind, {})
        assert mine.get("rope_theta") == other.get("rope_theta")
    assert ours["rope_parameters"].get("rope_theta") == rope.get("rope_theta")
    assert ours["rope_parameters"].get("rope_type") == rope.get("rope_type")
    assert ours["rope_parameters"].get("partial_rotary_factor") in (rope.get("partial_rotary_factor"), None)


# Defaults of classes that no key is written for.
UNWRITTEN = {("head_dim", "granite"), ("head_dim", "granitemoe")}


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
NULLS = {"factor": None, "rope_theta": None}
ROPES = {
    "flat and kinds mixed": (
        "olmo3",
        {"rope_parameters": {**PLAIN, "full_attention": PLAIN, "sliding_attention": PLAIN}},
    ),
    "a flat leftover": (
        "olmo3",
        {"rope_parameters": {**YARN, "full_attention": PLAIN, "sliding_attention": PLAIN}},
    ),
    "older scaling": ("olmo3", {"rope_scaling": YARN, "rope_theta": 500000.0}),
    "older scaling beside kinds": (
        "olmo3",
        {"rope_scaling": YARN, "rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}},
    ),
    "one kind": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {**PLAIN, "rope_type": "linear", "factor": 8.0}}},
    ),
    "older gemma": (
        "gemma3_text",
        {"rope_theta": 2e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "a null scaling": ("llama", {"rope_scaling": None, "rope_parameters": {**YARN, "rope_theta": 2e6}}),
    "dynamic": ("llama", {"rope_theta": 3e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "kinds that are null": (
        "olmo3",
        {"rope_theta": 500000.0, "rope_parameters": {"full_attention": None, "sliding_attention": None}},
    ),
}
CLASSES = {"olmo3": "Olmo3ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "llama": "LlamaForCausalLM"}


@pytest.mark.parametrize("case", ROPES)
def test_rope_is_that_of_the_configuration_class(case):
    from transformers import CONFIG_MAPPING

    model_type, settings = ROPES[case]
    family = family_of({"architectures": [CLASSES[model_type]]})
    ours = family.completed(SPARSE | settings)["rope_parameters"]
    theirs = CONFIG_MAPPING[model_type](**SPARSE, **json.loads(json.dumps(settings))).rope_parameters
    for kind in ("full_attention", "sliding_attention"):
        mine, other = ours.get(kind, ours), theirs.get(kind, theirs)
        keys = ["rope_type", "rope_theta"]
        keys += ["factor"] if other["rope_type"] != "default" else []
        keys += ["original_max_position_embeddings"] if other["rope_type"] == "yarn" else []
        for key in keys:
            assert mine[key] == other.get(key), (kind, key)


def test_a_null_inside_hides_nothing():
    text = {
        **SPARSE,
        "rope_theta": None,
        "sliding_window": None,
        "rope_parameters": {"full_attention": NULLS},
    }
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "rope_theta": 7e5, "sliding_window": 64}
    raw |= {"text_config": text}
    config = family_of(raw).completed(raw)
    assert config["sliding_window"] == 64
    assert config["rope_parameters"]["full_attention"] == {"rope_type": "default", "rope_theta": 7e5}
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0


IGNORED = {
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "no dynamic scaling"),
    "llama3": (
        "qwen2",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
        "no llama3 for this architecture",
    ),
    "longrope": ("qwen2", {"rope_scaling": {"type": "su", "long_factor": [1.0]}}, "no longrope for this"),
    "no factor": ("qwen2", {"rope_scaling": {"type": "yarn"}}, "type yarn without a factor"),
    "windows": (
        "olmo3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "linear there is left out",
    ),
}


@pytest.mark.parametrize("case", IGNORED)
def test_rope_that_llama_cpp_ignores_is_said(case, tmp_path):
    name, settings, message = IGNORED[case]
    directory = write_model(name, tmp_path)
    edit(directory / "config.json", **settings)
    (warning,) = open_checkpoint(directory).warnings
    assert warning.startswith("config.json: RoPE: ")
    assert message in warning


def test_mrope_sections_are_written_and_other_names_of_theta_read(tmp_path):
    directory = write_model("llama", tmp_path)
    edit(
        directory / "config.json",
        rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]},
        rotary_emb_base=7e5,
    )
    metadata = open_checkpoint(directory).metadata
    assert list(metadata.value("llama.rope.dimension_sections")) == [8, 12, 12, 0]
    assert metadata.value("llama.rope.freq_base") == 7e5


def test_tensors_that_predict_further_tokens_are_left_out_and_said(tmp_path):
    (warning,) = open_checkpoint(write_model("qwen3.5-vision", tmp_path / "a")).warnings
    assert warning.startswith("mtp.fc.weight and its like predict further tokens")
    directory, found = write_model("glm4-moe", tmp_path / "b"), tensors("glm4-moe")
    found["model.layers.2.eh_proj.weight"] = found["model.layers.1.self_attn.o_proj.weight"]
    write_shards(directory, found)
    (warning,) = open_checkpoint(directory).warnings
    assert warning.startswith("model.layers.2.eh_proj.weight and its like predict")


def test_text_config_is_lifted_and_completed():
    """The published Gemma 3 4B says no more than this."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    from transformers import Gemma3TextConfig

    ours, theirs = family_of(raw).completed(raw), Gemma3TextConfig(**text).to_dict()
    for key in (
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "sliding_window",
        *READ[:1],
    ):
        assert ours[key] == theirs[key], key
    assert ours["rope_parameters"] == theirs["rope_parameters"]
