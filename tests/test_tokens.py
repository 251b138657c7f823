"""Token ids against llama.cpp's own, for every pre-tokenizer it knows and every rule it has for special tokens."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest

from quantmill.gguf_io import GGUFSource, pretokenizers
from quantmill.models.errors import ModelError
from quantmill.models.tokenizer import from_directory, from_metadata
from quantmill.models.word_splitting import split_words
from tests.support import gguf_builder as build
from tests.support import made_vocabularies as made
from tests.support.convert_models import write_model
from tests.support.llama_model import LlamaVocabulary

SHORT = ["", " ", "  ", "\n", "a", " a", "a ", "<s>", "</s> \n x", "x <|end|>\t<|user|>  y", "\ufeffa"]


def assert_same(path: Path, texts: list[str]) -> None:
    ours = from_metadata(GGUFSource(path).metadata)
    with LlamaVocabulary(path) as theirs:
        for text in texts:
            for special in (False, True):
                wanted = theirs.tokenize(text, add_special=True, parse_special=special)
                assert ours.encode(text, parse_special=special) == wanted, (special, text)


@pytest.mark.parametrize("pre", pretokenizers.by_name())
def test_every_pre_tokenizer(pre: str, tmp_path: Path) -> None:
    rng = random.Random(pre)
    path = made.byte_pairs(tmp_path / "v.gguf", pre, rng)
    assert_same(path, [made.text(rng) for _ in range(8)] + SHORT)


@pytest.mark.parametrize("seed", range(4))
def test_sentence_pieces(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    extra = [
        build.pair(f"tokenizer.ggml.{key}", build.BOOL, rng.random() < 0.5)
        for key in ("add_bos_token", "add_eos_token", "add_space_prefix")
        if rng.random() < 0.5
    ]
    path = made.sentence_pieces(tmp_path / "v.gguf", rng, extra=extra)
    assert_same(path, [made.text(rng) for _ in range(12)] + SHORT)


@pytest.mark.parametrize("name", ["Phi-3 mini", "my PHI3", "Modern-BERT"])
def test_special_tokens_of_some_models_swallow_white_space(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    texts = [made.text(rng) for _ in range(12)] + SHORT
    assert_same(made.sentence_pieces(tmp_path / "s.gguf", rng, name=name), texts)
    assert_same(made.byte_pairs(tmp_path / "b.gguf", "llama-bpe", rng, name=name), texts)
    assert_same(made.byte_pairs(tmp_path / "j.gguf", "jina-v2-code", rng, name=name), texts)


@pytest.mark.parametrize("seed", range(10))
def test_which_of_several_fill_tokens_is_taken_and_what_the_file_names(seed: int, tmp_path: Path) -> None:
    """llama.cpp takes the first in its hash table's order, unless the file names one inside the vocabulary."""
    rng = random.Random(seed)
    names = ("eos", "bos", "unk", "eot", "eom", "fim_pre", "prefix", "fim_pad", "fim_sep", "suffix")
    extra = [
        build.pair(f"tokenizer.ggml.{name}_token_id", build.U32, rng.choice((300, 1400, 1 << 20)))
        for name in names
        if rng.random() < 0.2
    ]
    path = made.byte_pairs(tmp_path / "v.gguf", "qwen2", rng, extra=extra)
    assert_same(path, [" ".join(rng.sample(made.SPECIAL, len(made.SPECIAL))) for _ in range(4)])


def test_tokens_that_merges_do_not_reach_and_merges_without_tokens(tmp_path: Path) -> None:
    """llama.cpp merges by text alone; bytes without a token vanish."""
    tokens = ["a", "b", "c", "d", "abc", "bcd", "Ġ", "x", "\u0120x"]
    merges = ["b c", "c d", "a b", "a bc", "ab c", "bc d", "Ġ x", "y z"]
    pairs = [build.pair("general.architecture", build.STRING, "llama")]
    pairs += [build.pair("tokenizer.ggml.model", build.STRING, "gpt2")]
    pairs += [build.pair("tokenizer.ggml.pre", build.STRING, "gpt-2")]
    pairs += [build.array("tokenizer.ggml.tokens", build.STRING, tokens)]
    pairs += [build.array("tokenizer.ggml.merges", build.STRING, merges)]
    path = tmp_path / "v.gguf"
    path.write_bytes(build.gguf(pairs))
    assert_same(path, ["abcd", "abc bcd xbc yz axé", "bc", "x x", "éa"])


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen35", "kimi-k2", "afmoe"])
def test_characters_where_categories_change(pre: str, tmp_path: Path) -> None:
    kinds = [unicodedata.category(chr(point))[0] for point in range(0x110000)]
    edges = [i for i in range(1, 0x110000) if kinds[i] != kinds[i - 1] and not 0xD7FF < i < 0xE001]
    points = [chr(point) for edge in edges for point in (edge - 1, edge)]
    texts = ["a ".join(points[i : i + 100]) for i in range(0, len(points), 100)]
    assert_same(made.byte_pairs(tmp_path / "v.gguf", pre, random.Random(0)), texts)


def test_categories_are_those_of_unicode() -> None:
    """15.1 in the table; this Python may know more or fewer characters, but none otherwise."""
    wrong = []
    for point in range(0x80, 0x110000):
        kind = unicodedata.category(chr(point))
        if kind[0] in "LNMPS" and not 0xD800 <= point < 0xE000:
            alone = split_words(2 * chr(point), [rf"\p{{{kind[0]}}}"]) == [chr(point), chr(point)]
            wrong += [] if alone else [hex(point)]
    assert not wrong or unicodedata.unidata_version > "15.1"


def test_a_surrogate_is_a_replacement_character(tmp_path: Path) -> None:
    assert split_words("a\udc80b", [r"\p{L}+"]) == ["a", "\ufffd", "b"]
    for path in (
        made.sentence_pieces(tmp_path / "s.gguf", random.Random(0)),
        made.byte_pairs(tmp_path / "b.gguf", "gpt-2", random.Random(0)),
    ):
        ours = from_metadata(GGUFSource(path).metadata)
        assert ours.encode("a\ud83d") == ours.encode("a\ufffd")


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2", "whitespace", "hybriddna"])
def test_vocabularies_that_are_not_supported_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    pairs = [build.pair("tokenizer.ggml.model", build.STRING, kind)]
    path.write_bytes(build.gguf([*pairs, build.array("tokenizer.ggml.tokens", build.STRING, ["a"])]))
    with pytest.raises(ModelError, match=f"tokenizer.ggml.model = '{kind}': only gpt2") as error:
        from_metadata(GGUFSource(path).metadata)
    assert "\n" not in str(error.value)


def test_an_unknown_pre_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    pairs = [build.pair("tokenizer.ggml.model", build.STRING, "gpt2")]
    pairs += [build.pair("tokenizer.ggml.pre", build.STRING, "of-tomorrow")]
    path.write_bytes(build.gguf([*pairs, build.array("tokenizer.ggml.tokens", build.STRING, ["a"])]))
    with pytest.raises(
        ModelError, match=r"tokenizer.ggml.pre = 'of-tomorrow': this splitting rule is not known"
    ):
        from_metadata(GGUFSource(path).metadata)


@pytest.mark.parametrize("n", [5, 30, 400])
def test_special_tokens_of_one_length_that_overlap(n: int, tmp_path: Path) -> None:
    """Which is cut out first is what llama.cpp's unstable sort makes of their order."""
    rng = random.Random(n)
    words = ["".join(rng.choices("abcdefgh", k=rng.choice((2, 3, 3)))) for _ in range(2 * n)]
    tokens = ["<unk>", *dict.fromkeys(words[:n]), *"abcdefgh ▁"]
    types = [2, *[4 if len(token) > 1 else 1 for token in tokens[1:]]]
    pairs = [build.pair("general.architecture", build.STRING, "llama")]
    pairs += [build.pair("tokenizer.ggml.model", build.STRING, "llama")]
    pairs += [build.array("tokenizer.ggml.tokens", build.STRING, tokens)]
    pairs += [build.array("tokenizer.ggml.token_type", build.I32, types)]
    path = tmp_path / "v.gguf"
    path.write_bytes(build.gguf(pairs))
    assert_same(path, ["".join(rng.choices("abcdefgh ", k=200)) for _ in range(5)])


def test_a_checkpoint_has_the_tokens_of_its_gguf(tmp_path: Path) -> None:
    """Not those of transformers, which takes every added token out of a text."""
    directory = write_model("qwen2", tmp_path / "model")
    value = json.loads((directory / "tokenizer.json").read_text())
    end = value["added_tokens"][-1]["id"] + 1
    value["added_tokens"].append({**value["added_tokens"][-1], "id": end, "content": "<EOT>"})
    (directory / "tokenizer.json").write_text(json.dumps(value))
    ours = from_directory(directory)
    assert end not in ours.encode("a<EOT>b")
    assert end in ours.encode("a<EOT>b", parse_special=True)
    # No checkpoint: the tokenizer alone, as transformers has it.
    (directory / "config.json").unlink()
    assert end in from_directory(directory).encode("a<EOT>b", parse_special=True)
    for path in directory.iterdir():
        path.unlink()
    with pytest.raises(ModelError, match="no tokenizer could be loaded from here"):
        from_directory(directory)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (build.array("tokenizer.ggml.tokens", build.U32, [1, 2]), "tokens is not a list of texts"),
        (build.pair("tokenizer.ggml.tokens", build.STRING, "ab"), "tokens is not a list of texts"),
        (build.array("tokenizer.ggml.token_type", build.I32, [1]), "token_type has 1 entries for 2 tokens"),
        (
            build.array("tokenizer.ggml.token_type", build.STRING, ["1", "1"]),
            "token_type is not a list of numbers",
        ),
        (build.array("tokenizer.ggml.scores", build.F32, [1.0]), "scores has 1 entries for 2 tokens"),
        (build.array("tokenizer.ggml.scores", build.STRING, ["a", "b"]), "scores is not a list of numbers"),
    ],
)
def test_vocabularies_of_other_types_are_refused_in_one_line(
    pair: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "v.gguf"
    pairs = [build.pair("tokenizer.ggml.model", build.STRING, "llama"), pair]
    if b"ggml.tokens" not in pair:
        pairs.append(build.array("tokenizer.ggml.tokens", build.STRING, ["a", "b"]))
    path.write_bytes(build.gguf(pairs))
    with pytest.raises(ModelError, match=message):
        from_metadata(GGUFSource(path).metadata)
