"""The types that fit a size: the choice itself, by brute force; candidates, pins and limits; sizes to the byte."""

import itertools

import numpy as np
import pytest

from quantmill.qkernels.types import TYPES
from quantmill.recipe import Recipe, RecipeError, parse_rule
from quantmill.recipe.allocate import Option, allocate
from quantmill.recipe.budget import Limits, Target, pose, solve
from tests.support.recipe_models import dense, experts, importance, metadata, specs

TENSORS = specs(dense(4, 512))
FACTS = metadata(n_layer=4)


def problem(target, tensors=TENSORS, recipe=None, limits=None, weighed=True):
    index = importance(tensors) if weighed else None
    return pose(tensors, FACTS, recipe or Recipe("Q8_0"), index, target, limits or Limits())


def losses_of(posed, seed=0):
    """Losses that fall with the bits, by another factor for each tensor."""
    rng = np.random.default_rng(seed)
    factors = {c.entry.name: 10 ** rng.uniform(-3, 0) for c in posed.candidates}
    return {
        c.entry.name: {t: factors[c.entry.name] * 4 ** -TYPES[t].bits_per_weight for t in c.types}
        for c in posed.candidates
    }


def hull_edges(menu):
    """Pairs of options with no other below the line through them."""
    for a, b in itertools.permutations(menu, 2):
        if a.n_bytes < b.n_bytes:
            slope = (b.loss - a.loss) / (b.n_bytes - a.n_bytes)
            if all(o.loss >= a.loss + slope * (o.n_bytes - a.n_bytes) - 1e-12 for o in menu):
                yield a, b


@pytest.mark.parametrize("seed", range(40))
def test_close_to_the_best_of_all(seed):
    """Six tensors, four options each, 4096 assignments: never above the size, never far above the least loss."""
    rng = np.random.default_rng(seed)
    menus = {}
    for i in range(6):
        sizes = np.sort(rng.integers(1, 60, 4))
        losses = np.sort(rng.exponential(1.0, 4))[::-1]
        menus[str(i)] = [
            Option(str(j), int(s), float(x)) for j, (s, x) in enumerate(zip(sizes, losses, strict=True))
        ]
    least = sum(min(option.n_bytes for option in menu) for menu in menus.values())
    most = sum(max(option.n_bytes for option in menu) for menu in menus.values())
    # Two tensors are tried through. For the others, at the price where the first step does not fit, what is chosen is
    # best but for that step (weak duality).
    small = sorted(menus.values(), key=lambda menu: menu[0].n_bytes - menu[-1].n_bytes)[2:]
    step = max(a.loss - b.loss for menu in small for a, b in hull_edges(menu))
    for room in (least, (2 * least + most) // 3, (least + most) // 2, most):
        chosen = allocate(menus, room)
        assert sum(option.n_bytes for option in chosen.values()) <= room
        found = sum(option.loss for option in chosen.values())
        fitting = [a for a in itertools.product(*menus.values()) if sum(o.n_bytes for o in a) <= room]
        best = min(sum(o.loss for o in a) for a in fitting)
        assert best - 1e-12 <= found <= best + step
    assert sum(option.loss for option in allocate(menus, most).values()) == pytest.approx(
        sum(min(option.loss for option in menu) for menu in menus.values())
    )


def test_a_large_tensor_is_not_left_behind():
    """An embedding whose best step misses the room that smaller steps have taken before, by a byte."""
    menus = {str(i): [Option("a", 1, 1.0), Option("b", 2, 0.5), Option("c", 3, 0.49)] for i in range(20)}
    menus["embedding"] = [Option("a", 10, 9.0), Option("b", 30, 0.5)]
    chosen = allocate(menus, 20 + 10 + 39)
    assert chosen["embedding"].type == "b"
    assert sum(option.type == "b" for option in chosen.values()) == 20


def test_the_best_where_many_small_steps_fit():
    """A hundred tensors on exact hulls: the sum of losses is that of the price per byte, up to one step."""
    rng = np.random.default_rng(1)
    menus = {
        str(i): [Option(str(b), 100 * b, w * 4.0**-b) for b in range(2, 9)]
        for i, w in enumerate(rng.lognormal(0, 2, 100))
    }
    room = 100 * 450
    found = allocate(menus, room)
    # Dual bound: for every price, Σ min(loss + price·bytes) − price·room is at most the best.
    bound = max(
        sum(min(o.loss + price * o.n_bytes for o in menu) for menu in menus.values()) - price * room
        for price in 10 ** np.linspace(-12, 0, 400)
    )
    total = sum(option.loss for option in found.values())
    assert bound <= total <= 1.01 * bound


@pytest.mark.parametrize("shapes", [dense(4, 512), dense(4, 576), experts(4, 4)])
@pytest.mark.parametrize("bits", [3.3, 4.5, 6.1])
def test_a_size_is_a_ceiling_in_bytes_and_hardly_missed(shapes, bits):
    tensors = specs(shapes)
    n_weights = sum(int(np.prod(t.shape)) for t in tensors)
    lowest = 4.5 if shapes["blk.0.attn_q.weight"][0] == 576 else 0.0
    target = Target(file_bytes=int(max(bits, lowest + 0.3) * n_weights / 8))
    posed = problem(target, tensors)
    plan = solve(posed, losses_of(posed)).plan
    assert target.file_bytes - 60_000 < plan.file_bytes <= target.file_bytes


def test_bits_per_weight_are_those_of_the_plan():
    posed = problem(Target(bpw=4.5))
    solution = solve(posed, losses_of(posed))
    assert 4.45 < solution.plan.bpw <= 4.5
    assert solution.loss == pytest.approx(
        sum(losses_of(posed)[name][type] for name, type in solution.types.items())
    )


@pytest.mark.parametrize("split", [{"split_max_bytes": 400_000}, {}])
def test_the_size_holds_with_several_files_too(split):
    target = Target(file_bytes=2_500_000)
    posed = problem(target, recipe=Recipe("Q8_0", **split))
    assert solve(posed, losses_of(posed)).plan.file_bytes <= target.file_bytes


def test_more_room_never_loses_more():
    found = []
    for size in range(1_750_000, 5_000_000, 250_000):
        posed = problem(Target(file_bytes=size))
        found.append(solve(posed, losses_of(posed)).loss)
    assert found == sorted(found, reverse=True)


def test_what_a_size_cannot_be():
    with pytest.raises(
        RecipeError, match=r"^1000 bytes: cannot be reached; this model can have \d+ bytes to \d+ bytes"
    ):
        problem(Target(file_bytes=1000))
    with pytest.raises(
        RecipeError, match=r"0.5 bits per weight: cannot be reached; .* 1\.\d+ bits per weight to 8\.\d+"
    ):
        problem(Target(bpw=0.5))
    with pytest.raises(RecipeError, match="smaller --min-type"):
        problem(Target(bpw=4.0), limits=Limits("Q4_K"))
    with pytest.raises(RecipeError, match="--imatrix"):
        problem(Target(bpw=2.0), weighed=False)
    with pytest.raises(RecipeError, match="--pure"):
        problem(Target(bpw=4.5), recipe=Recipe("Q8_0", pure=True))
    with pytest.raises(RecipeError, match="--min-type Q6_K is larger than --max-type Q4_K"):
        Limits("Q6_K", "Q4_K")


def test_pins_are_kept_and_the_rest_pays_for_them():
    recipe = Recipe(
        "Q8_0", rules=(parse_rule("attn_v=q8_0"), parse_rule(r"blk\.0\.ffn=q2_k")), output_tensor_type="Q5_K"
    )
    posed = problem(Target(bpw=4.0), recipe=recipe)
    types = {entry.name: entry.type for entry in solve(posed, losses_of(posed)).plan.entries}
    assert {types[f"blk.{i}.attn_v.weight"] for i in range(4)} == {"Q8_0"}
    assert types["blk.0.ffn_up.weight"] == "Q2_K"
    assert types["output.weight"] == "Q5_K"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_types_stay_between_the_limits():
    posed = problem(Target(bpw=5.0), limits=Limits("Q4_K", "Q6_K"))
    assert {t for c in posed.candidates for t in c.types} == {"Q4_K", "Q5_K", "Q6_K"}


def test_row_lengths_decide_the_candidates():
    odd = {
        "blk.0.ffn_up.weight": (576, 64),
        "blk.0.ffn_down.weight": (36, 64),
        "token_embd.weight": (512, 64),
    }
    posed = problem(Target(file_bytes=10**6), specs(odd), limits=Limits(None, "Q3_K"))
    types = {c.entry.name: c.types for c in posed.candidates}
    # No type of 3.4 bits or less holds rows of 576: the nearest ones do. Rows of 36 stay as they are.
    assert types["blk.0.ffn_up.weight"] == ("Q4_0", "IQ4_NL")
    assert types["blk.0.ffn_down.weight"] == ("F16",)
    assert types["token_embd.weight"][0] == "IQ1_S"


def test_types_that_need_importance_are_left_out_without_it():
    index = importance(TENSORS, skip=["blk.1.ffn_up.weight"])
    posed = pose(TENSORS, FACTS, Recipe("Q8_0"), index, Target(bpw=4.0), Limits())
    types = {c.entry.name: c.types for c in posed.candidates}
    assert types["blk.0.ffn_up.weight"][0] == "IQ1_S"
    assert types["blk.1.ffn_up.weight"][0] == "Q2_K"
    assert not solve(posed, losses_of(posed)).plan.problems


def test_what_is_quantized_already_stays():
    tensors = specs(dense(4, 512), {"blk.0.ffn_up.weight": "Q8_0"})
    posed = problem(Target(bpw=4.5), tensors)
    solution = solve(posed, losses_of(posed))
    assert solution.types["blk.0.ffn_up.weight"] == "Q8_0"
    assert not solution.plan.problems


def test_a_stack_of_experts_is_one_choice():
    tensors = specs(experts(4, 4))
    posed = problem(Target(bpw=4.5), tensors)
    assert [c.entry.name for c in posed.candidates].count("blk.0.ffn_up_exps.weight") == 1
