"""Vocabularies in tiktoken's form whose class is code of the checkpoint (Kimi, Hunyuan), read without running it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.errors import GGUFError
from tests.support.convert_models import edit, tensors, write_f32, write_model, write_shards
from tests.support.llama_model import LlamaVocabulary
from tests.support.packed_models import PACKED


def of_ranks(ranks: Mapping[bytes, int], word: bytes) -> list[int]:
    """What tiktoken makes of a word: the pair of the lowest rank is joined, until none has one."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        joined = {i: ranks[pair] for i in range(len(parts) - 1) if (pair := parts[i] + parts[i + 1]) in ranks}
        if not joined:
            break
        i = min(joined, key=lambda place: joined[place])
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


@pytest.mark.parametrize(("name", "file"), [("kimi-k2", "tiktoken.model"), ("hunyuan-moe", "hy.tiktoken")])
def test_words_become_the_tokens_that_ranks_make(name: str, file: str, tmp_path: Path) -> None:
    directory = write_model(name, tmp_path / "model")
    pairs = (line.split() for line in (directory / file).read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    words = ("they", " have", " within", " thiswasnot", "Ünï", "想")  # cut so by both classes' expressions
    with LlamaVocabulary(write_f32(directory, tmp_path / "model.gguf")) as vocabulary:
        for word in words:
            assert vocabulary.tokenize(word) == of_ranks(ranks, word.encode()), word
        assert (
            len(vocabulary.tokenize("<|im_end|>" if name == "kimi-k2" else "<|eos|>", parse_special=True))
            == 1
        )


BAD = {
    "no ranks": ("not base64 at all\n", "holds no ranks of tokens in tiktoken's form"),
    "a gap": ("AA== 0\nAQ== 2\n", "the ranks of its tokens are not 0 to 1"),
    "too many": (
        "".join(f"{base64.b64encode(i.to_bytes(2, 'big')).decode()} {i}\n" for i in range(600)),
        "holds 600 tokens, config.json's vocab_size is 512",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_right(case: str, tmp_path: Path) -> None:
    directory = write_model("kimi-k2", tmp_path / "model")
    text, message = BAD[case]
    (directory / "tiktoken.model").write_text(text, encoding="ascii")
    with pytest.raises(GGUFError, match=message):
        open_checkpoint(directory)


def test_int4_of_the_text_part_alone_is_kept(tmp_path: Path) -> None:
    """Kimi K2.5 says in text_config how its experts are packed, and packs nothing else."""
    directory, form = write_model("kimi-k2.5-vision", tmp_path / "model"), PACKED["int4-g32"]
    found, random = {}, np.random.RandomState(0)
    for name, (dtype, values) in tensors("kimi-k2.5-vision").items():
        if ".experts." in name:
            found |= form.pack(random, name.removesuffix(".weight"), values.shape)
        else:
            found[name] = (dtype, values)
    write_shards(directory, found)
    config = open_checkpoint(write_model("kimi-k2.5-vision", tmp_path / "other"))
    inner = json.loads((directory / "config.json").read_text())["text_config"]
    text = {**inner, "quantization_config": form.settings}
    edit(directory / "config.json", text_config=text)
    with open_checkpoint(directory) as source:
        types = {spec.name: spec.type for spec in source.specs()}
    assert types.keys() == {spec.name for spec in config.specs()}
    assert types["blk.1.ffn_up_exps.weight"] == "Q4_0"
    assert types["blk.1.ffn_up_shexp.weight"] == "BF16"
