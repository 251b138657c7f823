"""A checkpoint that cannot be converted says so in one line, before anything is written."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest

from quantmill.gguf_io.convert import SUPPORTED, open_checkpoint
from quantmill.gguf_io.errors import GGUFError
from tests.support.convert_models import tensors, write_model, write_shards


@pytest.fixture
def model(tmp_path):
    return write_model("qwen3-moe", tmp_path)


def refused(directory, message, **options):
    with pytest.raises(GGUFError, match=message) as error:
        open_checkpoint(directory, **options)
    assert "\n" not in str(error.value)


def edit(path, **changes):
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is None:
            del value[key]
        else:
            value[key] = change
    path.write_text(json.dumps(value))


def rewrite(directory, change, name="qwen3-moe"):
    found = tensors(name)
    change(found)
    write_shards(directory, found)


def test_unknown_architecture_names_the_supported_ones_and_the_way_round(model):
    edit(model / "config.json", architectures=["MambaForCausalLM"])
    refused(model, "architecture MambaForCausalLM is not supported")
    refused(model, "convert_hf_to_gguf.py and give quantmill the GGUF")
    with pytest.raises(GGUFError) as error:
        open_checkpoint(model)
    assert all(name in str(error.value) for name in SUPPORTED)


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
        ("llama", {"rope_scaling": {"type": "spiral"}}, "RoPE scaling 'spiral' is not supported"),
        ("llama", {"rope_scaling": [1]}, r"rope_scaling must be an object, not \[1\]"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "long_factor": [1], "short_factor": [1]}},
            "need 32 each",
        ),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is set; Gemma 3 has none"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "'gptq' is not supported"),
        ("qwen2", {"num_attention_heads": 3, "num_hidden_layers": 3}, "has no tensors for blk.2."),
        ("llama", {"num_attention_heads": 3}, "256 rows do not divide into the heads of config.json"),
        ("llama", {"vocab_size": 300}, "embed_tokens.weight has 512 rows, config.json's vocab_size is 300"),
    ],
)
def test_settings(tmp_path, name, changes, message):
    write_model(name, tmp_path)
    edit(tmp_path / "config.json", **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100000])
def test_files_that_are_not_json(model, file, text):
    (model / file).write_text(text)
    refused(model, file)


def test_model_card(model):
    (model / "README.md").write_text("---\nlicense: [\n---\n")
    refused(model, r"README\.md: its front matter is not YAML")


@pytest.mark.parametrize("odd", [None, 3, -1, "text", [], [3], {}, {"a": 3}], ids=str)
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"]
)
def test_values_of_another_kind(tmp_path, file, odd):
    """Every value of every file, replaced: it converts, or it is refused; no other error escapes."""
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


def shrink(directory, name, vocab_size):
    """The model with fewer tokens than its tokenizer has."""
    write_model(name, directory)
    edit(directory / "config.json", vocab_size=vocab_size)

    def change(found):
        for tensor in {"model.embed_tokens.weight", "lm_head.weight"} & found.keys():
            found[tensor] = (found[tensor][0], found[tensor][1][:vocab_size])

    rewrite(directory, change, name)


def test_a_tokenizer_larger_than_the_model(tmp_path):
    shrink(tmp_path / "bpe", "qwen2", 256)
    refused(tmp_path / "bpe", "the tokenizer has token")
    # SentencePiece ids behind the vocabulary are passed over, as llama.cpp's converter does.
    shrink(tmp_path / "spm", "llama", 300)
    assert len(open_checkpoint(tmp_path / "spm").metadata.value("tokenizer.ggml.tokens")) == 300


def test_experts_of_different_type_meet_in_float32(model):
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    rewrite(model, lambda found: found.update({name: ("F16", np.ones((256, 256), np.float16))}))
    source = open_checkpoint(model)
    assert {spec.name: spec.type for spec in source.specs()}["blk.0.ffn_up_exps.weight"] == "F32"
    assert (source.read("blk.0.ffn_up_exps.weight", 256, 256).view(np.float32) == 1).all()


def test_no_tokenizer(model):
    (model / "tokenizer.json").unlink()
    refused(model, "the vocabulary is missing")


def test_missing_expert(model):
    rewrite(model, lambda found: found.pop("model.layers.1.mlp.experts.2.up_proj.weight"))
    refused(model, r"blk.1.ffn_up_exps.weight: 3 of 4 experts are there, missing \[2\]")


def test_missing_layer(model):
    rewrite(model, lambda found: [found.pop(name) for name in list(found) if ".layers.1." in name])
    refused(model, r"the checkpoint has no tensors for blk\.1\.; it is incomplete")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_missing_tensor(model, name):
    rewrite(model, lambda found: found.pop(name))
    refused(model, "the checkpoint has no tensors for (token_embd|output_norm).weight")


def test_extra_tensor(model):
    rewrite(
        model, lambda found: found.update({"model.layers.0.mlp.surprise.weight": found["model.norm.weight"]})
    )
    refused(model, r"model\.layers\.0\.mlp\.surprise\.weight: architecture qwen3moe has no GGUF tensor")


def test_tensor_twice(model):
    rewrite(model, lambda found: found.update({"language_model.lm_head.weight": found["lm_head.weight"]}))
    refused(model, "output.weight is already made of")


def test_experts_of_different_shape(model):
    def change(found):
        found["model.layers.0.mlp.experts.1.up_proj.weight"] = ("BF16", np.zeros((8, 256), np.uint16))

    rewrite(model, change)
    refused(model, r"blk.0.ffn_up_exps.weight: experts differ in shape")


def test_integer_weights(model):
    rewrite(model, lambda found: found.update({"model.norm.weight": ("I32", np.zeros(256, np.int32))}))
    refused(model, "tensor model.norm.weight has dtype I32; weights must be")


def test_biases_that_llama_cpp_has_no_place_for(tmp_path):
    write_model("cohere2", tmp_path)
    zero = ("F16", np.zeros(256, np.float16))
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(tmp_path, lambda found: found.update({name: zero}), "cohere2")
    assert open_checkpoint(tmp_path).specs()
    rewrite(tmp_path, lambda found: found.update({name: ("F16", zero[1] + 1)}), "cohere2")
    refused(tmp_path, f"{name} is not zero")


def test_mxfp4_without_exponents(tmp_path):
    write_model("gpt-oss", tmp_path)
    name = "model.layers.0.mlp.experts.down_proj_scales"
    rewrite(tmp_path, lambda found: found.pop(name), "gpt-oss")
    refused(tmp_path, f"has no block exponents .*{name}")


def test_fp8_scale_without_weight(tmp_path):
    write_model("deepseek-v3-fp8", tmp_path)
    name = "model.layers.0.self_attn.o_proj.weight"
    rewrite(tmp_path, lambda found: found.pop(name), "deepseek-v3-fp8")
    refused(tmp_path, f"{name}_scale_inv has no weight to scale")


@pytest.mark.parametrize("name", ["deepseek-v3-fp8", "llama-fp8"])
def test_fp8_scales_of_another_shape(tmp_path, name):
    write_model(name, tmp_path)
    scale = next(tensor for tensor in tensors(name) if "_scale" in tensor)
    rewrite(tmp_path, lambda found: found.update({scale: ("F32", np.ones((3, 3), np.float32))}), name)
    refused(tmp_path, rf"{scale} \[3, 3\] does not fit")


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
