"""Vocabularies of SentencePiece's Unigram: llama.cpp cuts texts as the libraries that the files were made for."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from quantmill.gguf_io.convert import open_checkpoint
from tests.support.bad_models import refused
from tests.support.convert_models import edit, write_f32, write_model
from tests.support.llama_model import LlamaVocabulary
from tests.support.sentencepiece_files import CHARSMAP, sentencepiece_model

TEXTS = ("they have not", "  that   was for it ", "ﬁnd Ａ, thisé 我.", "thewasnothis")


def test_of_tokenizer_json(tmp_path: Path) -> None:
    directory = write_model("xlm-roberta-json", tmp_path / "model")
    original = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with LlamaVocabulary(write_f32(directory, tmp_path / "model.gguf")) as vocabulary:
        for text in TEXTS:
            assert vocabulary.tokenize(text) == original.encode(text, add_special_tokens=False).ids, text


def test_of_sentencepiece(tmp_path: Path) -> None:
    """fairseq's numbers: one more than SentencePiece's, but for what is unknown."""
    directory = write_model("xlm-roberta", tmp_path / "model")
    original = SentencePieceProcessor(str(directory / "sentencepiece.bpe.model"))
    with LlamaVocabulary(write_f32(directory, tmp_path / "model.gguf")) as vocabulary:
        for text in TEXTS:
            expected = [i + 1 if i else 3 for i in original.encode(text)]
            assert vocabulary.tokenize(text) == expected, text


def test_both_files_say_the_same(tmp_path: Path) -> None:
    one, other = (
        open_checkpoint(write_model(name, tmp_path / name)) for name in ("xlm-roberta", "xlm-roberta-json")
    )
    count = list(other.metadata.value("tokenizer.ggml.tokens")).index("<mask>")
    for key in ("tokens", "scores", "token_type"):
        found = [list(source.metadata.value(f"tokenizer.ggml.{key}"))[:count] for source in (one, other)]
        assert found[0] == found[1]


BAD = {
    "BPE in its place": (
        "sentencepiece.bpe.model",
        sentencepiece_model([("a", 0.0, 1)]),
        "holds no Unigram vocabulary",
    ),
    "no protocol buffer": ("sentencepiece.bpe.model", b"\xff" * 40, "not a SentencePiece model"),
    "nothing": ("sentencepiece.bpe.model", b"", r"not a SentencePiece model \(no pieces\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_right(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    (write_model("xlm-roberta", tmp_path) / name).write_bytes(content)
    refused(tmp_path, message)


NO_TABLES = ("§", "AAAA", "AAQAAAAA", 7, base64.b64encode(CHARSMAP[:-3] + b"\xff").decode())


@pytest.mark.parametrize("table", NO_TABLES)
def test_tables_that_are_none(table: object, tmp_path: Path) -> None:
    """The tokenizers package panics at them, whatever the architecture."""
    normalizer = {"type": "Precompiled", "precompiled_charsmap": table}
    for name in ("xlm-roberta-json", "qwen3"):
        path = write_model(name, tmp_path / name) / "tokenizer.json"
        edit(path, normalizer={"type": "Sequence", "normalizers": [normalizer]})
        refused(tmp_path / name, "precompiled_charsmap must be SentencePiece's table")


def test_no_vocabulary(tmp_path: Path) -> None:
    path = write_model("xlm-roberta-json", tmp_path) / "tokenizer.json"
    path.unlink()
    refused(tmp_path, "no sentencepiece.bpe.model and no tokenizer.json; download one of them")
