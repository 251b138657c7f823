"""The plan as a whole: metadata in order, exact sizes, importance, splits, what stops a run."""

import re
import subprocess
import sys

import pytest

from quantmill.gguf_io import GGUFSink, TensorSpec
from quantmill.gguf_io.metadata import GGUFValueType, MetaValue
from quantmill.recipe import ImportanceIndex, Recipe, RecipeError, build_plan, parse_override, parse_rule
from tests.support.recipe_models import dense, experts, importance, metadata, specs, value


def plan_of(recipe, shapes=None, index=None, types=None, keys=None):
    return build_plan(
        specs(dense(4) if shapes is None else shapes, types), keys or metadata(n_layer=4), recipe, index
    )


# Metadata


def added(plan, keys):
    return [(key, found.value) for key, found in plan.metadata.items() if key not in keys]


def test_version_and_file_type_come_last():
    keys = metadata(n_layer=4).set("general.file_type", value(1)).set("z", value("last"))
    plan = plan_of(Recipe("Q4_K_M"), keys=keys)
    assert list(plan.metadata)[-3:] == ["z", "general.quantization_version", "general.file_type"]
    assert plan.metadata["general.file_type"] == value(15)
    assert plan.metadata["general.quantization_version"] == value(2)


def test_importance_keys():
    keys = metadata(n_layer=4)
    name = "a" * 120 + "äöü.gguf"
    index = ImportanceIndex(name, dict.fromkeys(["blk.0.attn_q.weight"], 512), ("text", "other"), 20)
    plan = plan_of(Recipe("Q4_K"), index=index, keys=keys)
    cut = name.encode()[:127].decode(errors="surrogateescape")
    assert added(plan, keys)[2:] == [
        ("quantize.imatrix.file", cut),
        ("quantize.imatrix.dataset", "text"),
        ("quantize.imatrix.entries_count", 1),
        ("quantize.imatrix.chunks_count", 20),
    ]
    assert len(plan.metadata["quantize.imatrix.file"].encode()) == 4 + 8 + 127


def test_importance_keys_that_have_no_value():
    keys = metadata(n_layer=4)
    plan = plan_of(Recipe("Q4_K"), index=ImportanceIndex("i", {"x": 1}), keys=keys)
    assert [key for key, _ in added(plan, keys)[2:]] == [
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    ]
    assert len(added(plan_of(Recipe("Q4_K"), index=ImportanceIndex("i", {}), keys=keys), keys)) == 2


def test_overrides_in_order_before_importance():
    overrides = tuple(
        map(parse_override, ("b=int:-5", "a=float:0.1", "general.file_type=int:7", "c=bool:false"))
    )
    plan = plan_of(Recipe("Q4_K_M", overrides=overrides), index=ImportanceIndex("i", {"x": 1}))
    assert list(plan.metadata)[-6:-2] == ["b", "a", "general.file_type", "c"]
    assert plan.metadata["b"] == value(5)
    assert plan.metadata["a"].type == GGUFValueType.FLOAT32
    assert "--override-kv b: -5 is stored as 5" in plan.warnings


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a=int",
        "=int:1",
        "a=int:x",
        "a=int:",
        "a=int:1x",
        "a=float:one",
        "a=float:1e39",
        "a=float:inf",
        "a=float:nan",
        "a=bool:1",
        "a=list:1",
        "a=int:4294967296",
        "a=str:" + 128 * "x",
        128 * "k" + "=int:1",
    ],
)
def test_overrides_that_are_none(text):
    with pytest.raises(RecipeError, match="--override-kv"):
        parse_override(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("general.name=int:5", "holds a str there, and an int is given (5); programs"),
        ("llama.rope.freq_base=int:500000", "holds a float there, and an int is given (500000)"),
        ("llama.vocab_size=bool:true", "holds an int there, and a bool is given (true)"),
        ("general.file_type=str:Q4_0", "holds an int there, and a str is given (Q4_0)"),
        ("tokenizer.ggml.tokens=str:a", "holds a list there, and a str is given (a)"),
        ("llama.attention.sliding=float:1", "holds an int there, and a float is given (1)"),
        ("llama.embedding_length=int:4294967295", "4294967295 is no whole number from 0 to 16777216"),
        ("llama.new_count=str:many", "'many' is no whole number from 0 to 16777216, which this key holds"),
    ],
)
def test_overrides_that_no_program_would_read(given, said):
    keys = metadata(n_layer=4)
    for key, type, held, elements in (
        ("general.name", GGUFValueType.STRING, "x", None),
        ("llama.rope.freq_base", GGUFValueType.FLOAT32, 1e4, None),
        ("llama.vocab_size", GGUFValueType.UINT32, 9, None),
        ("tokenizer.ggml.tokens", GGUFValueType.ARRAY, ["a"], GGUFValueType.STRING),
        ("llama.attention.sliding", GGUFValueType.ARRAY, [1, 2], GGUFValueType.INT32),
    ):
        keys = keys.set(key, MetaValue(type, held, elements))
    with pytest.raises(RecipeError, match=f"^--override-kv {given.partition('=')[0]}: .*{re.escape(said)}"):
        plan_of(Recipe("Q4_K", overrides=(parse_override(given),)), keys=keys)
    fine = ("llama.attention.sliding=int:3", "general.parameter_count=int:4000000000", "new.count=str:many")
    plan = plan_of(Recipe("Q4_K", overrides=tuple(map(parse_override, fine))), keys=keys)
    assert plan.metadata["llama.attention.sliding"] == value(3)


def test_copy_keeps_or_guesses_the_file_type():
    keys = metadata(n_layer=4).set("general.file_type", value(17))
    assert plan_of(Recipe("COPY"), keys=keys).metadata.value("general.file_type") == 17
    assert plan_of(Recipe("COPY")).metadata.value("general.file_type") == 1 | 1024
    quantized = dict.fromkeys(dense(4), "Q4_K")
    assert plan_of(Recipe("COPY"), types=quantized).metadata.value("general.file_type") == 15 | 1024


def test_a_model_that_does_not_say_what_it_is():
    keys = metadata(n_layer=4)
    with pytest.raises(RecipeError, match=r"no general\.architecture"):
        plan_of(Recipe("Q8_0"), keys=keys.without("general.architecture"))
    with pytest.raises(RecipeError, match=r"no llama\.block_count"):
        plan_of(Recipe("Q8_0"), keys=keys.without("llama.block_count"))
    with pytest.raises(RecipeError, match="no tensors"):
        plan_of(Recipe("Q8_0"), {})


# Sizes and files


@pytest.mark.parametrize(
    "recipe", [Recipe("Q4_K_M"), Recipe("Q6_K", keep_split=True), Recipe("F16", split_max_bytes=10**6)]
)
def test_the_promised_size_is_the_size_of_the_files(tmp_path, recipe):
    plan = plan_of(recipe)
    options = {"keep_split": recipe.keep_split, "split_max_bytes": recipe.split_max_bytes}
    with GGUFSink(tmp_path / "out.gguf", plan.metadata, plan.output_tensors(), **options) as sink:
        for entry in plan.entries:
            sink.write(entry.name, bytes(entry.n_bytes))
        sink.commit()
    assert plan.file_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (len(list(tmp_path.iterdir())) > 1) == (recipe.split_max_bytes is not None)


def test_bits_per_weight_count_the_tensors_only():
    plan = plan_of(Recipe("Q8_0", pure=True), {"output.weight": (64, 100)})
    assert plan.bpw == 8.5
    assert plan.source_bpw == 16


def test_keep_split_keeps_shards_and_their_order():
    tensors = [TensorSpec(f"blk.{i}.attn_q.weight", (256, 4), "F16", i // 2, 5000 - 32 * i) for i in range(4)]
    plan = build_plan(tensors, metadata(n_layer=4), Recipe("Q4_K", keep_split=True))
    assert [(entry.name[4], entry.shard) for entry in plan.entries] == [
        ("1", 0),
        ("0", 0),
        ("3", 1),
        ("2", 1),
    ]


def test_a_shard_that_pruning_empties_is_left_out():
    tensors = [TensorSpec(f"blk.{i}.attn_q.weight", (256, 4), "F16", i, 32) for i in range(4)]
    recipe = Recipe("Q4_K", keep_split=True, prune_layers=(0, 2))
    assert [entry.shard for entry in build_plan(tensors, metadata(n_layer=4), recipe).entries] == [1, 2]


# Importance


def test_importance_of_experts_counts_all_of_them():
    shapes = experts(4, 8)
    tensors = specs(shapes)
    plan = plan_of(Recipe("Q4_K_M"), shapes, importance(tensors), keys=metadata(n_layer=4, expert_count=8))
    entry = next(entry for entry in plan.entries if entry.name == "blk.0.ffn_up_exps.weight")
    assert (entry.importance_name, entry.n_matrices) == ("blk.0.ffn_up_exps.weight", 8)


def test_missing_mandatory_importance_is_found_while_planning():
    tensors = specs(dense(4))
    plan = plan_of(Recipe("IQ2_XS"))
    assert (
        "blk.0.attn_k.weight: IQ2_XS needs importance and no importance matrix was given" in plan.problems[0]
    )
    index = importance(tensors, skip=["blk.2.attn_q.weight"])
    plan = plan_of(Recipe("IQ2_XS"), index=index)
    assert len(plan.problems) == 1
    assert plan.problems[0].startswith(
        "blk.2.attn_q.weight: IQ2_XS needs importance and imatrix.gguf has no entry"
    )
    assert not plan_of(Recipe("IQ2_XS"), index=importance(tensors)).problems


@pytest.mark.parametrize(
    ("file_type", "instead"), [("IQ2_XXS", "Q2_K"), ("Q2_K_S", "Q3_K"), ("Q4_K_M", None)]
)
def test_layers_that_predict_further_tokens_need_no_importance(file_type, instead):
    tensors = specs(dense(4))
    of_trunk = importance(tuple(spec for spec in tensors if not spec.name.startswith("blk.3.")))
    keys = metadata(n_layer=4, nextn_predict_layers=1)
    plan = build_plan(tensors, keys, Recipe(file_type), of_trunk)
    types = {entry.name: entry.type for entry in plan.entries}
    assert plan.problems == ()
    assert types["blk.3.ffn_up.weight"] == (instead or types["blk.2.ffn_up.weight"])
    assert any("predict further tokens" in line for line in plan.warnings) == (instead is not None)
    if instead:
        assert build_plan(tensors, keys, Recipe(file_type, fallback=False), of_trunk).problems


def test_q2_k_needs_importance_only_in_q2_k_s():
    assert not plan_of(Recipe("Q2_K")).problems
    assert "Q2_K needs importance" in plan_of(Recipe("Q2_K_S")).problems[0]


@pytest.mark.parametrize(("type", "refused"), [("IQ2_XXS", True), ("IQ3_XXS", False), ("Q2_K", False)])
def test_exempt_names_still_need_what_ggml_cannot_do_without(type, refused):
    """llama-quantize lets these two names pass and crashes in ggml for three types."""
    plan = plan_of(Recipe("Q4_K", token_embedding_type=type))
    assert bool(plan.problems) is refused
    assert all(problem.startswith("token_embd.weight: ") for problem in plan.problems)


def test_importance_of_another_model_is_refused_but_for_embeddings():
    sizes = {"blk.0.attn_q.weight": 100, "token_embd.weight": 100}
    plan = plan_of(Recipe("Q4_K"), index=ImportanceIndex("other.gguf", sizes))
    assert len(plan.problems) == 1
    assert "blk.0.attn_q.weight: other.gguf holds 100 values for it, 512 are needed" in plan.problems[0]


def test_tensors_without_importance_are_mentioned():
    index = importance(specs(dense(4)), skip=["blk.1.attn_q.weight", "blk.2.attn_q.weight", "output.weight"])
    warnings = plan_of(Recipe("Q4_K"), index=index).warnings
    assert warnings == (
        "imatrix.gguf has no entry for blk.1.attn_q.weight and 1 more: quantized without importance",
    )


# What stops a run


def test_quantized_sources_need_permission():
    types = {"blk.1.attn_q.weight": "Q4_0"}
    plan = plan_of(Recipe("Q4_K"), types=types)
    assert len(plan.problems) == 1
    assert "blk.1.attn_q.weight: is already quantized to Q4_0" in plan.problems[0]
    assert not plan_of(Recipe("Q4_K", allow_requantize=True), types=types).problems
    assert not plan_of(Recipe("COPY"), types=types).problems
    same = plan_of(Recipe("Q4_K", rules=(parse_rule("blk.1.attn_q=q4_0"),)), types=types)
    assert not same.problems


def test_types_that_are_no_weights_cannot_be_converted():
    plan = plan_of(Recipe("Q4_K"), types={"blk.1.attn_q.weight": "I32"})
    assert plan.problems == ("blk.1.attn_q.weight: holds I32, which cannot be converted to Q4_K",)


def test_fallbacks_are_listed():
    plan = plan_of(Recipe("Q4_K", pure=True), dense(4, 544))
    assert {(entry.fallback_from, entry.type) for entry in plan.fallbacks} == {("Q4_K", "Q5_0")}
    assert len(plan.fallbacks) == 4 * 7 + 2


def test_planning_loads_no_engine():
    code = "import quantmill.recipe, sys; print(sorted({'torch', 'triton', 'llvmlite', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
