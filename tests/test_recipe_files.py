"""Sizes as people write them; recipe files: read, written, lifted from a GGUF and replayed."""

import json

import gguf
import numpy as np
import pytest

from quantmill import cli
from quantmill.gguf_io import TensorSpec
from quantmill.recipe import (
    Recipe,
    RecipeError,
    build_plan,
    parse_size,
)
from quantmill.recipe.lift import recipe_of, rules_for
from quantmill.recipe.patterns import type_rule
from quantmill.recipe.recipe_file import RecipeFile, parse_recipe, recipe_text
from tests.support.measure_models import EXAMPLE, tiny
from tests.support.recipe_models import dense, experts, importance, metadata, specs

IMATRIX = str(EXAMPLE / "imatrix.gguf")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("105454368", 105454368),
        ("512B", 512),
        ("4600M", 4_600_000_000),
        ("2G", 2_000_000_000),
        ("4.6GB", 4_600_000_000),
        ("1.5GiB", 1_610_612_736),
        ("4.6GiB", 4_939_212_390),  # 4.6 * 2**30 = 4939212390.4
        ("0.1 mib", 104_857),
        ("3K", 3000),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text, n_bytes):
    assert parse_size(text, "--target-size") == n_bytes


@pytest.mark.parametrize(
    "text", ["", "M", "-1G", "4,6GB", "4.6.1G", "1e9", "4.6 GiBs", "0", "0.1B", "٣M", ".5G"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(RecipeError, match="--target-size"):
        parse_size(text, "--target-size")


def test_a_recipe_is_toml_and_survives_it():
    rules = (
        type_rule(r"^blk\.(0|29)\.attn_v\.weight$", "Q6_K"),
        type_rule('it\'s "odd"\t\x7f', "q8_0"),
        type_rule("ü.*", "IQ4_NL"),
    )
    made = {"model": 'a "b"\\c\n', "file_bytes": 105454368, "predicted_loss": 1e-05, "bpw": 4.5}
    text = recipe_text(RecipeFile("Q4_K_M", rules, made), ["two layers", "", "ü"])
    assert parse_recipe(text, "r.toml") == RecipeFile("Q4_K_M", rules, made)
    assert r"""'^blk\.(0|29)\.attn_v\.weight$' = "Q6_K"  # two layers""" in text.splitlines()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("file_type = ", "not TOML"),
        ("[types]\n", "no file_type"),
        ('file_type = "Q9"\n', "unknown file type 'Q9'"),
        ('file_type = "Q4_K_M"\ntensors = 3\n', "unknown key tensors"),
        ('file_type = "Q4_K_M"\ntypes = 3\n', "are tables"),
        ('file_type = "Q4_K_M"\n[types]\nattn = 4\n', "quote patterns and types"),
        ('file_type = "Q4_K_M"\n[types]\nattn = "Q9"\n', "unknown tensor type 'Q9'"),
        ('file_type = "Q4_K_M"\n[types]\n\'(\' = "Q8_0"\n', "pattern"),
        (
            'file_type = "Q4_K_M"\n[made]\nfile_bytes = "4"\n',
            "made.file_bytes is '4', which is no whole number",
        ),
        ('file_type = "Q4_K_M"\n[made]\ncolour = "red"\n', "unknown key made.colour"),
    ],
)
def test_recipes_that_are_none(text, why):
    with pytest.raises(RecipeError, match=r"^r\.toml: ") as error:
        parse_recipe(text, "r.toml")
    assert why in str(error.value)


def quantized(tensors, chosen):
    """The specs of a plan's output."""
    plan = build_plan(tensors, metadata(n_layer=12), chosen, importance(tensors))
    return [TensorSpec(entry.name, entry.shape, entry.type, 0, 0) for entry in plan.entries]


@pytest.mark.parametrize("shapes", [dense(12, 512), dense(12, 576, output=False), experts(12, 4)])
@pytest.mark.parametrize("file_type", ["Q4_K_M", "IQ3_XS", "Q3_K_L", "MXFP4_MOE", "Q8_0", "BF16"])
def test_a_lifted_recipe_gives_the_same_types(shapes, file_type):
    tensors = specs(shapes)
    made = quantized(tensors, Recipe(file_type))
    recipe = recipe_of(made, metadata(n_layer=12), "m.gguf")
    again = parse_recipe(recipe_text(recipe), "r.toml")
    assert quantized(tensors, Recipe(again.file_type, again.rules)) == made


def test_lifting_any_assignment():
    """Types drawn tensor by tensor, names with upper case, bytes that are no UTF-8 and leading zeros among them."""
    odd = {
        "blk.01.Attn_V.weight": (512, 512),
        "blk.1.a+b(c).weight": (512, 512),
        "x\udcff.weight": (512, 512),
    }
    tensors = specs(dense(12) | odd)
    rng = np.random.default_rng(0)
    types = {t.name: str(rng.choice(["Q4_K", "Q5_K", "Q6_K"])) for t in tensors if len(t.shape) > 1}
    rules = rules_for(types)
    found = quantized(tensors, Recipe("Q8_0", rules))
    assert {t.name: t.type for t in found if t.name in types} == types


def test_patterns_of_a_lifted_recipe_are_few():
    types = {f"blk.{i}.attn_v.weight": "Q6_K" if i in (0, 7, 29) else "Q4_K" for i in range(30)}
    types |= {f"blk.{i}.ffn_up.weight": "Q4_K" for i in range(30)} | {"token_embd.weight": "Q8_0"}
    assert [str(rule) for rule in rules_for(types)] == [
        r"^token_embd\.weight$=Q8_0",
        r"^blk\.(0|7|29)\.attn_v\.weight$=Q6_K",
        r"^blk\.\d+\.attn_v\.weight$=Q4_K",
        r"^blk\.\d+\.ffn_up\.weight$=Q4_K",
    ]


def run(capsys, *words):
    capsys.readouterr()
    code = cli.main([*map(str, words)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


def test_a_file_made_elsewhere_is_lifted_and_replayed(capsys, tmp_path):
    """The command on a GGUF of the gguf package, then --recipe on the F16 source: the same types, by its reader."""
    code, text, _ = run(capsys, "recipe", tiny("Q4_0"))
    assert code == 0
    recipe = tmp_path / "theirs.toml"
    recipe.write_text(text)
    out = tmp_path / "ours.gguf"
    assert run(capsys, "quantize", "--recipe", recipe, tiny("F16"), out)[0] == 0
    wanted = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tiny("Q4_0")).tensors}
    # The router keeps its type whatever a recipe says; the gguf package was told to quantize it too.
    found = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(out).tensors}
    assert {name: type for name, type in found.items() if "gate_inp" not in name} == {
        name: type for name, type in wanted.items() if "gate_inp" not in name
    }


def test_replaying_gives_the_same_bytes(capsys, tmp_path):
    words = ["--imatrix", IMATRIX, "--tensor-type", "attn_v=q6_k", tiny("F16")]
    assert run(capsys, "quantize", *words, tmp_path / "a.gguf", "IQ3_M")[0] == 0
    (tmp_path / "r.toml").write_text(run(capsys, "recipe", tmp_path / "a.gguf")[1])
    words = ["--imatrix", IMATRIX, "--recipe", tmp_path / "r.toml", tiny("F16")]
    assert run(capsys, "quantize", *words, tmp_path / "b.gguf", "2")[0] == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_options_go_before_a_recipe(capsys, tmp_path):
    (tmp_path / "r.toml").write_text('file_type = "Q4_K_M"\n[types]\nattn = "Q5_0"\n')
    words = ["--recipe", tmp_path / "r.toml", "--tensor-type", "attn_v=q8_0", "--dry-run", "--json"]
    out = run(capsys, "quantize", *words, tiny("F16"), tmp_path / "x.gguf")[1]
    types = {tensor["name"]: tensor["type"] for tensor in json.loads(out)["tensors"]}
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["token_embd.weight"] == "Q6_K"  # no pattern names it: the mixture's


@pytest.mark.parametrize(
    ("content", "words", "code", "why"),
    [
        ('file_type = "Q9"\n', ["out.gguf"], 1, "unknown file type"),
        (b"\xff\xfe", ["out.gguf"], 1, "byte 0 is not UTF-8"),
        (None, ["out.gguf"], 1, "No such file"),
        ('file_type = "Q8_0"\n', [], 2, "TYPE is left out"),
        ('file_type = "Q8_0"\n', ["out.gguf", "Q8_0"], 2, "TYPE is left out"),
    ],
)
def test_recipes_that_cannot_be_followed(capsys, tmp_path, content, words, code, why):
    recipe = tmp_path / "r.toml"
    if content is not None:
        recipe.write_bytes(content.encode() if isinstance(content, str) else content)
    found = run(capsys, "quantize", "--recipe", recipe, tiny("F16"), *[tmp_path / word for word in words])
    assert found[0] == code
    assert why in " ".join(found[2].replace("│", "").split())


def test_the_recipe_of_something_else(capsys, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"no model")
    code, out, err = run(capsys, "recipe", tmp_path / "x.gguf")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
