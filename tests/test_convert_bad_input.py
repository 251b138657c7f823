"""A checkpoint that cannot be converted says so in one line, before anything is written."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest

from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.errors import GGUFError
from tests.support.bad_models import refused
from tests.support.convert_models import edit, write_model


@pytest.fixture
def model(tmp_path):
    return write_model("qwen3-moe", tmp_path)


@pytest.mark.parametrize("architectures", [None, []])
def test_no_architecture(model, architectures):
    edit(model / "config.json", architectures=architectures)
    refused(model, "config.json names no architecture")


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
)
@pytest.mark.parametrize("value", [None, "256", -4, 0, True])
def test_required_numbers(model, key, value):
    edit(model / "config.json", **{key: value})
    refused(model, f"key '{key}' must be a positive number")


def test_numbers_that_are_text(model):
    edit(model / "config.json", rms_norm_eps="1e-5")
    refused(model, "key 'rms_norm_eps' must be a number, not '1e-5'")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deepseek-v2", {"scoring_func": "dice"}, "scoring_func 'dice'; known are sigmoid, softmax"),
        ("llama", {"rope_scaling": [1]}, r"rope_scaling must be an object, not \[1\]"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "long_factor": [1], "short_factor": [1]}},
            "need 32 each",
        ),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is set; Gemma 3 has none"),
        ("llama", {"quantization_config": [1]}, r"quantization_config must be an object, not \[1\]"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 6"),
        ("gemma3", {"sliding_window_pattern": 0}, "must be a number from 1 on or letters, not 0"),
        (
            "llama",
            {"rope_parameters": {"full_attention": 3}},
            "rope_parameters.full_attention must be an object",
        ),
        ("llama", {"rope_scaling": {"factor": "2"}}, "factor of RoPE must be a number, not '2'"),
        (
            "qwen2",
            {"num_attention_heads": 3},
            r"k_proj.bias: has shape \[128\], config.json asks for \[170\] \(num_key_value_heads × head_dim\)",
        ),
        (
            "qwen2",
            {"num_hidden_layers": 3},
            r"no tensors of layer 2 \(blk.2.\), config.json's num_hidden_layers is 3",
        ),
        ("qwen2", {"num_hidden_layers": 1}, r"model.layers.1\S+: config.json's num_hidden_layers is 1"),
        (
            "llama",
            {"num_attention_heads": 3},
            r"q_proj.weight: has shape \[256, 256\], which cannot be cut as config.json says; "
            r"blk.0.attn_q.weight is to be \[255, 256\] \(num_attention_heads × head_dim, hidden_size\)",
        ),
        (
            "llama",
            {"vocab_size": 300},
            r"lm_head.weight: has shape \[512, 256\], config.json asks for \[300, 256\] \(vocab_size, hidden_size\)",
        ),
    ],
)
def test_settings(tmp_path, name, changes, message):
    write_model(name, tmp_path)
    edit(tmp_path / "config.json", **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100000])
def test_files_that_are_not_json(model, file, text):
    (model / file).write_text(text)
    refused(model, file)


QUANTIZED = {
    "gptq (5 bits)": {"quant_method": "gptq", "bits": 5},
    "gptq (marlin, 4 bits)": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
    "awq (4 bits)": {"quant_method": "awq", "bits": 4},
    "modelopt (NVFP4_AWQ)": {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"},
    "auto-round (4 bits)": {"quant_method": "auto-round", "bits": 4},
    "bitsandbytes (nf4)": {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"},
    "compressed-tensors (marlin-24, 4 bits)": {
        "quant_method": "compressed-tensors",
        "format": "marlin-24",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}},
    },
    "compressed-tensors (pack-quantized, transformed)": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "transform_config": {"config_groups": {"u": {"type": "hadamard"}}},
    },
    "compressed-tensors (nvfp4-pack-quantized)": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"a": {}, "b": {}},
    },
    "['several']": {"quant_method": ["several"]},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_other_quantizations_are_named(model, name):
    edit(model / "config.json", quantization_config=QUANTIZED[name])
    refused(model, re.escape(f"the weights are quantized by {name}, which is not supported"))


def test_modelopt_says_its_format_in_a_file_of_its_own(model):
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A16_AWQ"}}
    (model / "hf_quant_config.json").write_text(json.dumps(settings))
    refused(model, r"quantized by modelopt \(W4A16_AWQ\)")


@pytest.mark.parametrize("text", ["license: [", "date: 2024-13-45", "a: \x07", "[" * 3000])
def test_a_model_card_that_is_no_yaml_is_left_out(model, text):
    expected = open_checkpoint(model).metadata
    (model / "README.md").write_text(f"---\n{text}\n---\n")
    source = open_checkpoint(model)
    (warning,) = source.warnings
    assert "README.md: its front matter is not YAML" in warning
    assert "\n" not in warning
    assert set(expected) - set(source.metadata) <= {key for key in expected if key.startswith("general.")}


OPTIONAL = {
    "a number for a text": ("license: 3\nversion: 1.5\nname: Right", ["license is 3", "version is 1.5"]),
    "not a text among texts": ("tags: [chat, 3, null, 2024-01-01]", ["tags is ['chat', 3, None"]),
    "an odd base model": ("base_model:\n- 3\n- org/name\n- name: [1]\n  author: A", ["base_model is [3,"]),
    "no list": ("datasets: 3", ["datasets is 3"]),
}


@pytest.mark.parametrize("case", OPTIONAL)
def test_odd_entries_of_a_model_card_are_left_out(model, case):
    text, expected = OPTIONAL[case]
    (model / "README.md").write_text(f"---\n{text}\n---\n")
    source = open_checkpoint(model)
    source.metadata.encode()
    assert len(source.warnings) == len(expected)
    for warning, part in zip(source.warnings, expected, strict=True):
        assert part in warning
    assert source.metadata.value("general.name") == ("Right" if "Right" in text else model.name.title())
    tags = source.metadata.value("general.tags")
    assert tags is None or list(tags) == ["chat"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100000, '{"top_k": "all"}', '{"temperature": true}', '{"top_k": 1.5}']
)
def test_odd_settings_for_sampling_are_left_out(model, text):
    (model / "generation_config.json").write_text(text)
    source = open_checkpoint(model)
    (warning,) = source.warnings
    assert "generation_config.json" in warning
    assert not [key for key in source.metadata if "sampling" in key]


def test_ids_of_no_token_are_left_out(model):
    edit(model / "config.json", sep_token_id=-1)
    source = open_checkpoint(model)
    assert source.warnings == (f"{model / 'config.json'}: sep_token_id is -1, which is no token; left out",)
    assert "tokenizer.ggml.seperator_token_id" not in source.metadata


@pytest.mark.parametrize("odd", [None, 3, -1, "text", [], [3], {}, {"a": 3}], ids=str)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_values_of_another_kind(tmp_path, file, odd):
    """Every value of a file, replaced: it converts, or it is refused; no other error escapes."""
    directory = write_model("qwen3-moe", tmp_path)
    original = json.loads((directory / file).read_text())
    places = [(original, key) for key in original]
    places += [
        (value, key) for value in original.values() if isinstance(value, dict) for key in list(value)[:12]
    ]
    for holder, key in places:
        kept, holder[key] = holder[key], odd
        (directory / file).write_text(json.dumps(original))
        holder[key] = kept
        with suppress(GGUFError):
            open_checkpoint(directory).metadata.encode()


def test_no_config(model):
    (model / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        open_checkpoint(model)


def test_no_tokenizer(model):
    (model / "tokenizer.json").unlink()
    refused(model, "the vocabulary is missing")


def test_unknown_pre_tokenizer_is_not_guessed(model):
    edit(model / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    refused(model, "its pre-tokenizer is none that llama.cpp knows")


def test_sentencepiece_that_is_none(tmp_path):
    write_model("llama", tmp_path)
    for data in (b"", b"\xff" * 64, b"\x0a\x7f", b"\x0a\x02\x15\x00"):
        (tmp_path / "tokenizer.model").write_bytes(data)
        refused(tmp_path, "not a SentencePiece model")


def test_unknown_output_type(model):
    refused(model, "type q4_k: a conversion gives f32, f16, bf16, q8_0 or auto", outtype="q4_k")


def test_hostile_chat_template_is_stored_not_executed(tmp_path):
    write_model("llama", tmp_path)
    template = (
        "{% for i in range(10**12) %}{{ ''.__class__.__mro__[1].__subclasses__() }}{% endfor %}{{ 1/0 }}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    assert open_checkpoint(tmp_path).metadata.value("tokenizer.chat_template") == template


def test_rows_that_do_not_exist(model):
    source = open_checkpoint(model)
    with pytest.raises(GGUFError, match="there is no tensor 'x'"):
        source.read("x")
    with pytest.raises(GGUFError, match=r"output.weight: rows 511 to 513 of 512"):
        source.read("output.weight", 511, 2)
