"""A checkpoint whose tensors are not those of its model says so in one line, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill.gguf_io.convert import open_checkpoint
from tests.support.bad_models import refused, rewrite
from tests.support.convert_models import edit, tensors, write_model, write_shards


@pytest.fixture
def model(tmp_path):
    return write_model("qwen3-moe", tmp_path)


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


def test_missing_expert(model):
    rewrite(model, lambda found: found.pop("model.layers.1.mlp.experts.2.up_proj.weight"))
    refused(model, r"blk.1.ffn_up_exps.weight: 3 of 4 experts are there, missing \[2\]")


def test_missing_layer(model):
    rewrite(model, lambda found: [found.pop(name) for name in list(found) if ".layers.1." in name])
    refused(model, r"there are no tensors of layer 1 .* num_hidden_layers is 2: the checkpoint is incomplete")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_missing_tensor(model, name):
    rewrite(model, lambda found: found.pop(name))
    refused(
        model,
        rf"{name} \((token_embd|output_norm).weight\) is missing, config.json asks for \[.*hidden_size\)",
    )


def test_extra_tensor(model):
    rewrite(
        model, lambda found: found.update({"model.layers.0.mlp.surprise.weight": found["model.norm.weight"]})
    )
    refused(model, r"model\.layers\.0\.mlp\.surprise\.weight: architecture qwen3moe has no GGUF tensor")


def test_tensor_twice(model):
    rewrite(model, lambda found: found.update({"language_model.lm_head.weight": found["lm_head.weight"]}))
    refused(model, "output.weight is already made of")


def test_a_matrix_of_too_few_rows(tmp_path):
    write_model("llama", tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    found = tensors("llama")
    rewrite(tmp_path, lambda found: found.update({name: ("BF16", found[name][1][:253])}), "llama")
    refused(
        tmp_path,
        rf"{name}: has shape \[253, 256\].* \[256, 256\] \(num_attention_heads × head_dim, hidden_size\)",
    )
    rewrite(tmp_path, lambda found: found.pop(name), "llama")
    refused(tmp_path, rf"{name} \(blk.1.attn_q.weight\) is missing, config.json asks for \[256, 256\]")
    write_shards(tmp_path, found)
    assert open_checkpoint(tmp_path).warnings == ()


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
    refused(tmp_path, f"has no {name}")


def test_fp8_without_a_scale(tmp_path):
    write_model("deepseek-v3-fp8", tmp_path)
    name = "model.layers.0.self_attn.o_proj.weight"
    rewrite(tmp_path, lambda found: found.pop(name + "_scale_inv"), "deepseek-v3-fp8")
    refused(tmp_path, rf"{name} \(FP8\) has no {name}_scale_inv")


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
