"""Dropping layers: names, counts and per-layer metadata; and that llama.cpp loads and runs the result."""

import numpy as np
import pytest

from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.gguf_io.metadata import Metadata
from quantmill.jobs.quantize import Job, run
from quantmill.recipe import Recipe, RecipeError, build_plan, parse_layers
from quantmill.recipe.prune import plan_pruning, prune_metadata
from tests.support.llama_model import LlamaModel
from tests.support.measure_models import tiny
from tests.support.recipe_models import dense, importance, metadata, specs, value


def pruned(keys, *layers, n_layer=8):
    """The metadata of a llama of `n_layer` layers without `layers`, and the warnings."""
    names = [f"blk.{i}.attn_q.weight" for i in range(n_layer)]
    return prune_metadata(metadata(n_layer=n_layer, **keys), "llama", plan_pruning(layers, names))


def test_layers_on_the_command_line():
    assert parse_layers("5,39, 5") == (5, 39)
    for text in ("", "a", "1,,2", "-1", "1-3", "²"):
        with pytest.raises(RecipeError, match="--prune-layers"):
            parse_layers(text)


def test_names_move_up():
    plan = build_plan(specs(dense(6)), metadata(n_layer=6), Recipe("Q8_0", prune_layers=(1, 4)))
    moved = {entry.source: entry.name for entry in plan.entries if entry.name.endswith("attn_q.weight")}
    assert moved == {
        "blk.0.attn_q.weight": "blk.0.attn_q.weight",
        "blk.2.attn_q.weight": "blk.1.attn_q.weight",
        "blk.3.attn_q.weight": "blk.2.attn_q.weight",
        "blk.5.attn_q.weight": "blk.3.attn_q.weight",
    }
    assert plan.metadata.value("llama.block_count") == 4
    assert list(plan.metadata)[-1] == "llama.block_count"


def test_encoder_and_decoder_keep_their_order():
    """llama-quantize counts dec.blk.10 before dec.blk.2 and so scrambles the layers of a T5."""
    names = [f"{side}.blk.{i}.attn_q.weight" for side in ("enc", "dec") for i in range(12)]
    found = plan_pruning((3,), names)
    assert found.new_name("dec.blk.10.attn_q.weight") == "dec.blk.9.attn_q.weight"
    assert found.new_name("enc.blk.2.attn_q.weight") == "enc.blk.2.attn_q.weight"
    assert found.new_name("dec.blk.3.attn_q.weight") is None


@pytest.mark.parametrize("layers", [(6,), (0, 99)])
def test_a_layer_that_does_not_exist_is_refused(layers):
    with pytest.raises(RecipeError, match=rf"no layer {layers[-1]} \(it has 0 to 5\)"):
        build_plan(specs(dense(6)), metadata(n_layer=6), Recipe("Q8_0", prune_layers=layers))


def test_something_must_remain():
    with pytest.raises(RecipeError, match="no layer would remain"):
        build_plan(specs(dense(2)), metadata(n_layer=2), Recipe("Q8_0", prune_layers=(0, 1)))


def test_a_model_with_an_embedding_for_each_layer_keeps_its_layers():
    with pytest.raises(RecipeError, match=r"per_layer_token_embd\.weight holds a part for each layer"):
        plan_pruning((1,), ["per_layer_token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight"])


def test_a_model_with_tables_of_one_layer_keeps_its_layers():
    names = ["per_layer_token_embd.weight", "blk.0.ple_key.weight", "blk.1.attn_q.weight"]
    with pytest.raises(
        RecipeError, match=r"holds tables of one layer, whose number stands elsewhere; a model with it"
    ):
        plan_pruning((1,), names)


def test_importance_is_looked_up_under_the_old_number():
    tensors = specs(dense(4))
    plan = build_plan(tensors, metadata(n_layer=4), Recipe("Q4_K", prune_layers=(1,)), importance(tensors))
    found = {entry.name: entry.importance_name for entry in plan.entries}
    assert found["blk.1.attn_q.weight"] == "blk.2.attn_q.weight"
    assert found["blk.0.attn_q.weight"] == "blk.0.attn_q.weight"


def test_per_layer_arrays_lose_the_pruned_layers():
    keys = {
        "attention__head_count_kv": [8, 0, 2, 3, 4, 5, 6, 7],
        "feed_forward_length": list(range(100, 108)),
        "attention__sliding_window_pattern": [True, False] * 4,
        "swiglu_clamp_exp": [i / 8 for i in range(8)],
        "attention__compress_ratios": [0, 4, 128, 4, 128, 4, 128, 4, 0],  # one more, of a layer left out
    }
    found, warnings = pruned(keys, 1, 6)
    assert list(found["llama.attention.head_count_kv"].value) == [8, 2, 3, 4, 5, 7]
    assert list(found["llama.feed_forward_length"].value) == [100, 102, 103, 104, 105, 107]
    assert list(found["llama.attention.sliding_window_pattern"].value) == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert list(found["llama.swiglu_clamp_exp"].value) == [0.0, 0.25, 0.375, 0.5, 0.625, 0.875]
    assert list(found["llama.attention.compress_ratios"].value) == [0, 128, 4, 128, 4, 4, 0]
    assert not warnings
    assert found["llama.feed_forward_length"].element_type == value([1]).element_type
    assert list(found) == list(metadata(n_layer=8, **keys))  # in place


def test_arrays_of_another_meaning_stay():
    keys = {"rope__dimension_sections": [1, 2, 3, 4], "other": [1, 2, 3, 4, 5]}
    found, _ = pruned(keys, 1, n_layer=4)
    assert list(found["llama.rope.dimension_sections"].value) == [1, 2, 3, 4]
    assert list(found["llama.other"].value) == [1, 2, 3, 4, 5]
    outside = (
        metadata(n_layer=4).set("tokenizer.ggml.scores", value([0.0] * 4)).set("xielu.beta", value([0.5] * 4))
    )
    names = [f"blk.{i}.attn_q.weight" for i in range(4)]
    found, _ = prune_metadata(outside, "llama", plan_pruning((0,), names))
    assert len(found["tokenizer.ggml.scores"].value) == 4
    assert len(found["xielu.beta"].value) == 3


@pytest.mark.parametrize(
    ("layers", "dense_layers", "nextn", "shared"),
    [((0,), 2, 1, 3), ((2, 3), 2, 1, 3), ((4,), 3, 1, 3), ((7,), 3, 0, 2), ((0, 6), 2, 1, 2)],
)
def test_counts_from_either_end(layers, dense_layers, nextn, shared):
    keys = {"leading_dense_block_count": 3, "nextn_predict_layers": 1, "attention__shared_kv_layers": 3}
    expected = {
        "leading_dense_block_count": 3 - sum(layer < 3 for layer in layers),
        "nextn_predict_layers": nextn,
        "attention.shared_kv_layers": shared,
    }
    found, _ = pruned(keys, *layers)
    assert {key: found.value(f"llama.{key}") for key in expected} == expected


def test_arrays_that_leave_out_the_prediction_layers():
    found, _ = pruned({"nextn_predict_layers": 1, "kinds": list(range(7))}, 2, 7)
    assert list(found["llama.kinds"].value) == [0, 1, 3, 4, 5, 6]


def test_lists_of_layers_are_renumbered():
    found, _ = pruned({"ple__layers": [1, 3, 7]}, 0, 3)
    assert list(found["llama.ple.layers"].value) == [0, 5]


def test_tensors_named_in_metadata_follow():
    extra = metadata(n_layer=4).set("general.tensor_extra.name", value(["blk.1.a", "blk.2.a", "output"]))
    extra = extra.set("general.tensor_extra.prec_a4", value([True, False, True]))
    names = [f"blk.{i}.a" for i in range(4)]
    found, _ = prune_metadata(extra, "llama", plan_pruning((1,), names))
    assert list(found["general.tensor_extra.name"].value) == ["blk.1.a", "output"]
    assert list(found["general.tensor_extra.prec_a4"].value) == [False, True]


def test_a_rhythm_of_layers_is_warned_about():
    _, warnings = pruned({"full_attention_interval": 4}, 2)
    assert len(warnings) == 1
    assert "llama.full_attention_interval is 4" in warnings[0]


def with_layered_heads(path, n_layer=4):
    """The example model with its number of key-value heads as one value a layer, in a file of its own."""
    source = open_source(tiny("F16"))
    key = "qwen3moe.attention.head_count_kv"
    keys = source.metadata.replace(key, value([int(source.metadata.value(key))] * n_layer))
    rewrite(source, keys, path)
    return path


def rewrite(source, keys, path):
    tensors = [OutputTensor(spec.name, spec.shape, spec.type) for spec in source.specs()]
    with GGUFSink(path, keys, tensors) as sink:
        for spec in source.specs():
            sink.write(spec.name, source.read(spec.name))
        sink.commit()


def test_the_pruned_model_runs_in_llama_cpp(tmp_path):
    layered = with_layered_heads(tmp_path / "layered.gguf")
    run(Job(str(layered), tmp_path / "pruned.gguf", Recipe("COPY", prune_layers=(1,))))
    run(Job(str(tiny("F16")), tmp_path / "plain.gguf", Recipe("COPY", prune_layers=(1,))))
    with LlamaModel(tmp_path / "pruned.gguf") as model:
        tokens = model.tokenize("Once upon a time there was")
        logits = model.logits(tokens)
    with LlamaModel(tmp_path / "plain.gguf") as model:
        assert np.array_equal(model.logits(tokens), logits)
    with LlamaModel(tiny("F16")) as model:
        assert not np.array_equal(model.logits(tokens), logits)
    assert np.isfinite(logits).all()


def test_llama_cpp_refuses_arrays_that_were_not_shortened(tmp_path):
    """What llama-quantize --prune-layers writes for such a model: the reason for shortening them."""
    layered = with_layered_heads(tmp_path / "layered.gguf")
    run(Job(str(layered), tmp_path / "pruned.gguf", Recipe("COPY", prune_layers=(1,))))
    source = open_source(tmp_path / "pruned.gguf")
    key = "qwen3moe.attention.head_count_kv"
    old = Metadata(source.metadata).replace(key, open_source(layered).metadata[key])
    rewrite(source, old, tmp_path / "broken.gguf")
    with pytest.raises(RuntimeError, match="does not load"):
        LlamaModel(tmp_path / "broken.gguf")


def test_a_lite_model_that_llama_cpp_tells_by_its_layers():
    names = [f"blk.{layer}.attn_norm.weight" for layer in range(27)]
    lite = metadata("deepseek2", n_layer=27)
    whole = metadata("deepseek2", n_layer=27, attention__q_lora_rank=96)
    for found, layers, warned in ((lite, (3, 4), True), (lite, (3,), False), (whole, (3, 4), False)):
        _, warnings = prune_metadata(found, "deepseek2", plan_pruning(layers, names))
        assert [line for line in warnings if "will not load one of 25" in line] == warnings
        assert bool(warnings) == warned
