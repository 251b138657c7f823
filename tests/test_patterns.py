"""Patterns of tensors' names and their types, as they are written."""

import pytest

from quantmill.commands.quantize_arguments import FILE_MARK, rules_of
from quantmill.recipe import RecipeError, parse_rule, parse_rules, parse_type
from quantmill.recipe.patterns import compile_pattern


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("attn_v", "blk.0.attn_v.weight", True),
        ("ATTN_V", "blk.0.attn_v.weight", True),
        (r"blk\.(1|2)\.", "blk.12.attn_v.weight", False),
        (r"blk\.1[0-5]\.", "blk.12.attn_v.weight", True),
        (r"^output", "output_norm.weight", True),
        (r"weight$", "blk.0.attn_v.weight", True),
        (r"\d{2,}", "blk.5.x", False),
        (r"(?!blk)t", "token_embd.weight", True),
        (r"(?:up|gate)_exps", "blk.0.ffn_gate_exps.weight", True),
        (r"[[:digit:]]+\.ffn", "blk.7.ffn_up.weight", True),
        (r"[^[:alpha:]]attn", "blk.7.attn_q.weight", True),
        (r"[a-c-]lk", "-lk", True),
        (r"\a", "a", True),  # an unknown escape is the letter itself
        (r"\x2e", "a.b", True),
        (r"\u0062lk", "blk", True),
        (r".*?norm", "output_norm.weight", True),
        (r"[\b]", "b", False),  # in a class \b is the backspace
    ],
)
def test_patterns_are_searched_as_std_regex_does(pattern, name, found):
    assert parse_rule(f"{pattern}=q8_0").matches(name) is found


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a", "missing"),
        ("a)", "unbalanced"),
        ("*a", "nothing to repeat"),
        ("[a", "never closed"),
        ("[]", "empty class"),
        ("[z-a]", "bad character range"),
        (r"(a)\1", "back-reference"),
        ("(?<x>a)", "group other than"),
        ("(?i)a", "group other than"),
        ("(?<=a)b", "group other than"),
        ("a*+", "quantifier after a quantifier"),
        ("a{,3}", "no quantifier"),
        ("[[:word:]]", "class name"),
        ("[[.a.]]", "collating"),
        ("a\\", "nothing follows"),
        (r"\x4", "hexadecimal"),
        (r"\cA".lower(), "control escape"),
    ],
)
def test_unsupported_patterns_say_why(pattern, why):
    with pytest.raises(RecipeError, match=why) as error:
        compile_pattern(pattern)
    assert repr(pattern) in str(error.value)


def test_python_only_meanings_are_not_taken():
    assert compile_pattern("a$").search("a\n") is None
    assert compile_pattern(r"\d").search("٣") is None
    assert compile_pattern(r"a\z").search("az")


@pytest.mark.parametrize("text", ["attn_v", "=q8_0", "attn_v=", "attn_v=q9", "blk(?=x)=q8_0"])
def test_rules_that_are_none(text):
    with pytest.raises(RecipeError, match="--tensor-type"):
        parse_rule(text)


def test_types_in_any_case_and_a_file_of_rules():
    assert parse_type("iq4_nl") == "IQ4_NL"
    assert [
        str(rule)
        for rule in parse_rules("attn_v=Q8_0\n\n  ffn_=q4_k\tx=f16  # a word\n# a line\n", "types.txt")
    ] == [
        "attn_v=Q8_0",
        "ffn_=Q4_K",
        "x=F16",
    ]
    with pytest.raises(RecipeError, match=r"types.txt, line 2: --tensor-type 'b=q9'"):
        parse_rules("a=q8_0\nb=q9", "types.txt")
    with pytest.raises(RecipeError, match="known: F32"):
        parse_type("q8_k")


def test_only_ascii_white_space_separates_rules(tmp_path):
    """As `stream >> word` in llama-quantize; a byte-order mark is no part of the first pattern."""
    odd = "a\u2028\xa0\x85b"
    assert [rule.pattern for rule in parse_rules(f"{odd}=q8_0\vc=q4_k", "f")] == [odd, "c"]
    (tmp_path / "types.txt").write_bytes(b"\xef\xbb\xbfattn_v=q8_0\r\nffn=q4_k\r\n")
    assert [rule.pattern for rule in rules_of([FILE_MARK + str(tmp_path / "types.txt")])] == ["attn_v", "ffn"]
