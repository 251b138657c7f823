"""Patterns, precedence, counters and mixtures: what llama-quantize does with options (facts of its source and runs)."""

import re

import pytest

from quantmill.recipe import Recipe, RecipeError, build_plan, parse_rule
from quantmill.recipe.names import category, may_be_quantized
from tests.support.recipe_models import dense, experts, importance, metadata, specs


def types_of(recipe, shapes=None, keys=None, with_importance=False, **meta):
    tensors = specs(dense() if shapes is None else shapes)
    plan = build_plan(
        tensors, keys or metadata(**meta), recipe, importance(tensors) if with_importance else None
    )
    return {entry.name: entry.type for entry in plan.entries}


def rules(*texts):
    return tuple(parse_rule(text) for text in texts)


def warnings_of(recipe, shapes=None):
    return build_plan(specs(dense() if shapes is None else shapes), metadata(), recipe).warnings


# Patterns


# Precedence


def test_first_matching_pattern_wins():
    found = types_of(Recipe("Q4_K_M", rules("blk\\.1\\.ffn=q8_0", "ffn=q6_k")))
    assert (found["blk.1.ffn_up.weight"], found["blk.2.ffn_up.weight"]) == ("Q8_0", "Q6_K")


def test_explicit_types_win_over_patterns():
    recipe = Recipe("Q4_K_M", rules(".*=q8_0"), token_embedding_type="Q4_0", output_tensor_type="F16")
    found = types_of(recipe)
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_0", "F16")


def test_a_pattern_rescues_only_the_per_layer_embedding():
    shapes = dense(2) | {"per_layer_token_embd.weight": (512, 1000)}
    found = types_of(
        Recipe("Q4_K_M", rules("token_embd=q8_0"), token_embedding_type="Q4_0"), shapes, n_layer=2
    )
    assert (found["token_embd.weight"], found["per_layer_token_embd.weight"]) == ("Q4_0", "Q8_0")
    found = types_of(Recipe("Q4_K_M", token_embedding_type="Q4_0"), shapes, n_layer=2)
    assert found["per_layer_token_embd.weight"] == "Q4_0"


def test_patterns_have_no_effect_on_float_files():
    recipe = Recipe("F16", rules("attn_v=q8_0"))
    assert types_of(recipe)["blk.0.attn_v.weight"] == "F16"
    assert any("decides nothing" in warning for warning in warnings_of(recipe))


def test_pure_and_patterns():
    found = types_of(Recipe("Q4_K_M", rules("attn_v=q8_0"), pure=True))
    assert {found[f"blk.{i}.attn_v.weight"] for i in range(16)} == {"Q8_0"}
    assert {found[f"blk.{i}.ffn_down.weight"] for i in range(16)} == {"Q4_K"}
    assert found["output.weight"] == "Q4_K"


def test_leave_output_tensor():
    assert types_of(Recipe("Q4_K_M", leave_output_tensor=True))["output.weight"] == "F16"
    tied = dense(output=False)
    assert types_of(Recipe("Q4_K_M", leave_output_tensor=True), tied)["token_embd.weight"] == "Q6_K"


def test_tied_embeddings_follow_the_output():
    tied = dense(output=False)
    assert types_of(Recipe("Q4_K_M"), tied)["token_embd.weight"] == "Q6_K"
    assert types_of(Recipe("Q4_K_M", output_tensor_type="Q8_0"), tied)["token_embd.weight"] == "Q8_0"
    assert (
        types_of(Recipe("Q4_K_M", output_tensor_type="Q8_0", pure=True), tied)["token_embd.weight"] == "Q4_K"
    )
    assert types_of(Recipe("IQ3_XXS"), tied, with_importance=True)["token_embd.weight"] == "Q5_K"


def test_copy_changes_nothing():
    found = types_of(Recipe("COPY", rules("attn_v=q8_0"), output_tensor_type="Q8_0"))
    assert set(found.values()) == {"F16", "F32"}


# Counters


def down_types(found, n_layer=16):
    return [found[f"blk.{i}.ffn_down.weight"] for i in range(n_layer)]


def test_counters_pass_over_tensors_that_a_pattern_decides():
    """Layers 0 and 1 are taken by a pattern, so layer 2 is the first the mixture counts (seen in real runs)."""
    plain = down_types(types_of(Recipe("Q4_K_M")))
    assert plain == ["Q6_K" if i < 2 or i >= 14 or (i - 2) % 3 == 2 else "Q4_K" for i in range(16)]
    shifted = down_types(types_of(Recipe("Q4_K_M", rules(r"blk\.[01]\.ffn_down=q8_0"))))
    assert shifted == ["Q8_0", "Q8_0", *plain[:14]]


def test_with_experts_the_layer_is_read_from_the_name():
    recipe = Recipe("Q4_K_M", rules(r"blk\.[01]\.ffn_down=q8_0"))
    found = types_of(recipe, experts(16, 4), expert_count=4)
    down = [found[f"blk.{i}.ffn_down_exps.weight"] for i in range(16)]
    assert down[:2] == ["Q8_0", "Q8_0"]
    assert down[2:] == ["Q6_K" if i >= 14 or (i - 2) % 3 == 2 else "Q4_K" for i in range(2, 16)]


def test_the_attention_counter_counts_kept_layers():
    found = types_of(Recipe("Q4_K_M", prune_layers=(0,)))
    values = [found[f"blk.{i}.attn_v.weight"] for i in range(15)]
    # 15 value tensors: the first 1, the last from 7 * 15 // 8 = 13 on, every third between
    assert values == ["Q6_K" if i < 1 or i >= 13 or (i - 1) % 3 == 2 else "Q4_K" for i in range(15)]


def test_a_layer_beyond_the_model_is_refused_with_experts():
    shapes = experts(2, 4) | {"blk.7.ffn_down_exps.weight": (512, 512, 4)}
    with pytest.raises(
        RecipeError, match=r"blk\.7\.ffn_down_exps\.weight: the mixture needs its layer, from 0 to 1"
    ):
        types_of(Recipe("Q4_K_M"), shapes, n_layer=2, expert_count=4)


# Mixtures that the golden models do not reach


def test_eight_experts():
    found = types_of(Recipe("Q4_K_M"), experts(8, 8), n_layer=8, expert_count=8)
    assert (found["blk.3.attn_v.weight"], found["blk.3.attn_k.weight"]) == ("Q8_0", "Q8_0")
    assert (found["blk.3.attn_output.weight"], found["blk.3.attn_q.weight"]) == ("Q5_K", "Q4_K")
    assert found["blk.3.ffn_gate_inp.weight"] == "F16"
    found = types_of(Recipe("IQ2_M"), experts(8, 8), with_importance=True, n_layer=8, expert_count=8)
    assert (found["blk.3.attn_v.weight"], found["blk.3.attn_k.weight"]) == ("Q4_K", "Q4_K")
    assert (found["blk.0.ffn_down_exps.weight"], found["blk.1.ffn_down_exps.weight"]) == ("IQ3_S", "IQ2_S")


def test_the_70b_lifts_its_small_value_weights():
    shapes = dense(80)
    assert types_of(Recipe("Q2_K"), shapes, n_layer=80, heads=(64, 8))["blk.40.attn_v.weight"] == "Q5_K"
    assert types_of(Recipe("Q2_K"), shapes, n_layer=80, heads=(64, 64))["blk.40.attn_v.weight"] == "Q3_K"
    assert (
        types_of(Recipe("Q2_K"), shapes, arch="qwen2", n_layer=80, heads=(64, 64))["blk.40.attn_v.weight"]
        == "Q5_K"
    )
    with_nextn = types_of(
        Recipe("Q2_K"), shapes, arch="qwen2", n_layer=80, heads=(64, 64), nextn_predict_layers=1
    )
    assert with_nextn["blk.40.attn_v.weight"] == "Q3_K"


def test_falcon_has_its_own_down_rules():
    found = types_of(Recipe("Q4_K_M"), arch="falcon")
    assert down_types(found)[:5] == ["Q6_K", "Q5_K", "Q4_K", "Q4_K", "Q5_K"]
    assert found["output.weight"] == "Q8_0"
    assert down_types(types_of(Recipe("Q3_K_M"), arch="falcon"))[:4] == ["Q5_K", "Q4_K", "Q3_K", "Q3_K"]


def test_importance_changes_the_mixture():
    assert down_types(types_of(Recipe("Q4_0")))[:3] == ["Q4_0", "Q4_0", "Q4_0"]
    assert down_types(types_of(Recipe("Q4_0"), with_importance=True))[:3] == ["Q4_1", "Q4_1", "Q4_0"]
    assert down_types(types_of(Recipe("IQ4_XS")))[:3] == ["Q5_K", "Q5_K", "IQ4_XS"]
    assert down_types(types_of(Recipe("IQ4_XS"), with_importance=True))[:3] == ["IQ4_XS"] * 3


def test_an_override_of_the_expert_count_changes_the_mixture():
    from quantmill.recipe import parse_override

    recipe = Recipe("Q4_K_M", overrides=(parse_override("llama.expert_count=int:8"),))
    assert types_of(recipe)["blk.0.attn_k.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("key", "given", "shown"),
    [
        ("llama.block_count", "int:99999999", "99999999"),
        ("llama.expert_count", "str:many", "'many'"),
        ("llama.attention.head_count", "float:1.5", "1.5"),
        ("llama.nextn_predict_layers", "bool:true", "True"),
    ],
)
def test_an_override_that_is_no_number_of_things_is_the_options_fault(key, given, shown):
    from quantmill.recipe import parse_override

    with pytest.raises(RecipeError) as raised:
        types_of(Recipe("Q4_K_M", overrides=(parse_override(f"{key}={given}"),)))
    assert str(raised.value).startswith(f"--override-kv {key}: {shown} is no whole number from 0 to 16777216")
    assert "damaged" not in str(raised.value)


# Shapes


@pytest.mark.parametrize(
    ("n_cols", "wanted", "found"),
    [
        (544, "Q4_K", "Q5_0"),
        (544, "Q6_K", "Q8_0"),
        (544, "IQ3_S", "IQ4_NL"),
        (544, "Q2_0", "Q4_0"),
        (100, "Q4_K", "F16"),
        (100, "Q8_0", "F16"),
        (512, "Q4_K", "Q4_K"),
    ],
)
def test_substitutes(n_cols, wanted, found):
    assert (
        types_of(Recipe("Q4_0", rules(f"attn_q={wanted}")), dense(2, n_cols), n_layer=2)[
            "blk.0.attn_q.weight"
        ]
        == found
    )


def test_substitutes_can_be_refused():
    with pytest.raises(RecipeError, match=r"544 columns, Q4_K needs a multiple of 256; .*allow Q5_0"):
        types_of(Recipe("Q4_K_M", fallback=False), dense(2, 544), n_layer=2)
    assert types_of(Recipe("Q4_0", pure=True, fallback=False), dense(2, 544), n_layer=2)


def test_explicit_types_have_no_substitute():
    with pytest.raises(
        RecipeError, match=r"token_embd\.weight: 544 columns, Q6_K needs .*--token-embedding-type"
    ):
        types_of(Recipe("Q4_0", token_embedding_type="Q6_K"), dense(2, 544), n_layer=2)
    with pytest.raises(RecipeError, match=r"output\.weight: .*--output-tensor-type"):
        types_of(Recipe("Q4_0", output_tensor_type="Q6_K"), dense(2, 544), n_layer=2)


# Reports about patterns


def test_patterns_that_match_nothing_are_reported():
    assert warnings_of(Recipe("Q4_K_M", rules("attn_w=q8_0"))) == (
        "--tensor-type attn_w=Q8_0: matches no tensor",
    )


def test_patterns_that_never_win_are_reported():
    found = warnings_of(Recipe("Q4_K_M", rules("attn=q8_0", "attn_v=q6_k")))
    assert len(found) == 1
    assert re.match(
        r"--tensor-type attn_v=Q6_K: decides nothing; .* matches the earlier attn=Q8_0 too", found[0]
    )
    found = warnings_of(Recipe("Q4_K_M", rules("norm=q8_0")))
    assert "keeps its type" in found[0]
    assert not warnings_of(Recipe("Q4_K_M", rules("attn_v=q8_0")))


def test_lower_casing_that_inverts_a_class_is_reported():
    assert any("opposite" in warning for warning in warnings_of(Recipe("Q4_K_M", rules(r"attn_\S=q8_0"))))


# Names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("output.weight", "OUTPUT"),
        ("blk.0.cross_attn_v.weight", "V"),
        ("blk.0.attn_qkv.weight", "QKV"),
        ("blk.0.attn_v_b.weight", "OTHER"),
        ("blk.0.ffn_gate_up_exps.weight", "GATE"),
        ("blk.0.ffn_up_shexp.weight", "UP"),
        ("blk.0.ffn_down_exps.weight", "DOWN"),
        ("xoutput.weight", "OTHER"),
    ],
)
def test_categories(name, kind):
    assert category(name) == kind


@pytest.mark.parametrize(
    ("name", "shape", "allowed"),
    [
        ("blk.0.attn_q.weight", (32, 32), True),
        ("blk.0.attn_q.bias", (32, 32), False),
        ("blk.0.attn_q.weight", (32,), False),
        ("scale", (32, 32), True),  # the oddity of five characters, seen in a real run
        ("scales", (32, 32), False),
        ("blk.0.ssm_conv1d.weight", (4, 32), False),
        ("position_embd.weight", (32, 32), False),
        ("blk.0.hc_fn.weight", (32, 32), True),
    ],
)
def test_what_may_be_quantized(name, shape, allowed):
    assert may_be_quantized(name, shape, "llama") is allowed
    if name == "blk.0.hc_fn.weight":
        assert not may_be_quantized(name, shape, "glm5-next")
