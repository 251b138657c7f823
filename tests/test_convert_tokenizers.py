"""Vocabularies: pre-tokenizers recognised, never guessed; llama.cpp splits text as the original tokenizer does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from quantmill.gguf_io import GGUFSink, OutputTensor
from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.convert.pretokenizer import probe_digest, recognise
from quantmill.gguf_io.convert.sentencepiece_model import read_pieces
from quantmill.gguf_io.convert.special_tokens import load
from quantmill.gguf_io.convert.tokenizer_json import TokenizerFiles
from quantmill.gguf_io.errors import GGUFError
from quantmill.qkernels import to_float32
from tests.support.convert_models import write_model
from tests.support.convert_tokenizers import DEFINITIONS, byte_level_tokenizer
from tests.support.llama_model import LlamaModel

TEXTS = [
    "The cat isn't on the mat, they'd have 12345 of them!",
    "  two  spaces\n\n\nlines\tand tabs \r\n end ",
    "Ünïcödé 我想在apple工作1314151天～ нещо на Български 🚀😶‍🌫️ កាន់តែពិសេសអាច",
    "x=3.14159; y+=[a-z]*{1,2} // don't 'RE 'll\n\n  }",
    "123 1234567 ١٢٣ ⅷ ²",
]


def write_tokenizer(directory, value):
    (directory / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False))
    return Tokenizer.from_str(json.dumps(value))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_is_recognised(name, tmp_path):
    tokenizer = write_tokenizer(tmp_path, byte_level_tokenizer(name))
    assert recognise(TokenizerFiles(tmp_path), tokenizer) == name


def test_definitions_split_the_probe_in_ways_of_their_own():
    digests = {}
    for name in DEFINITIONS:
        tokenizer = Tokenizer.from_str(json.dumps(byte_level_tokenizer(name)))
        digests.setdefault(probe_digest(tokenizer), []).append(name)
    assert [names for names in digests.values() if len(names) > 1] == [
        [
            "llama-bpe",
            "smaug-bpe",
            "minicpm5",
        ],  # and whether merges are ignored, or how numbers behind words fare
        ["qwen2", "seed-coder", "bailingmoe"],  # signs before line ends, which the probe has not
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Sequence", "pretokenizers": []},
        {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
        None,
    ],
)
def test_another_definition_is_refused(change, tmp_path):
    value = {**byte_level_tokenizer("gpt-2"), "pre_tokenizer": change}
    tokenizer = write_tokenizer(tmp_path, value)
    with pytest.raises(GGUFError, match=r"none that llama\.cpp knows"):
        recognise(TokenizerFiles(tmp_path), tokenizer)


def test_a_definition_that_splits_otherwise_than_recorded_is_refused(tmp_path, monkeypatch):
    tokenizer = write_tokenizer(tmp_path, byte_level_tokenizer("qwen2"))
    monkeypatch.setattr("quantmill.gguf_io.convert.pretokenizer.probe_digest", lambda tokenizer: "otherwise")
    with pytest.raises(GGUFError, match="defined like qwen2, yet splits the probe text otherwise"):
        recognise(TokenizerFiles(tmp_path), tokenizer)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_llama_cpp_splits_as_the_original(name, tmp_path):
    """The converted vocabulary, loaded by llama.cpp, gives the ids of the tokenizers library."""
    directory = write_model("qwen2", tmp_path / "model")
    tokenizer = write_tokenizer(directory, byte_level_tokenizer(name))
    source = open_checkpoint(directory, "f32")
    path = tmp_path / "model.gguf"
    outputs = [OutputTensor(spec.name, spec.shape, "F32") for spec in source.specs()]
    with GGUFSink(path, source.metadata, outputs) as sink:
        for spec in source.specs():
            sink.write(spec.name, to_float32(source.read(spec.name), spec.type).view(np.uint8))
        sink.commit()
    with LlamaModel(path) as model:
        for text in TEXTS:
            assert model.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text
        assert (
            model.tokenize("<|im_start|>the</s>", special=True)
            == tokenizer.encode("<|im_start|>the</s>", add_special_tokens=False).ids
        )


def test_sentencepiece_is_read_as_its_own_library_reads_it(tmp_path):
    from sentencepiece import SentencePieceProcessor

    path = write_model("llama", tmp_path) / "tokenizer.model"
    theirs = SentencePieceProcessor(model_file=str(path))
    ours = read_pieces(path)
    assert len(ours) == theirs.vocab_size()
    for i, piece in enumerate(ours):
        assert (piece.text, piece.score) == (theirs.id_to_piece(i), theirs.get_score(i))
        assert (piece.kind == 2, piece.kind == 3) == (theirs.is_unknown(i), theirs.is_control(i))
        assert (piece.kind == 5, piece.kind == 6) == (theirs.is_unused(i), theirs.is_byte(i))


def test_padded_vocabulary(tmp_path):
    metadata = open_checkpoint(write_model("qwen2", tmp_path)).metadata
    texts, types = metadata.value("tokenizer.ggml.tokens"), metadata.value("tokenizer.ggml.token_type")
    assert len(texts) == len(types) == 512
    assert (texts[511], types[511]) == ("[PAD511]", 5)
    assert types[texts.index("[added]")] == 4
    assert types[texts.index("<|im_start|>")] == 3


def test_named_chat_templates(tmp_path):
    directory = write_model("qwen2", tmp_path)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text("{{ main }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    metadata = open_checkpoint(directory).metadata
    assert metadata.value("tokenizer.chat_template") == "{{ main }}"
    assert list(metadata.value("tokenizer.chat_templates")) == ["tool_use"]
    assert metadata.value("tokenizer.chat_template.tool_use") == "{{ tools }}"


POST_PROCESSORS = {
    "BOS": ([{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], {"bos": True}),
    "EOS": ([{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}], {"eos": True}),
    "both": (
        [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}],
        {"bos": True, "eos": True},
    ),
    "another end": (
        [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|im_start|>"}}],
        {"eos": True},
    ),
    "nothing": ([{"Sequence": {"id": "A"}}], {}),
}


@pytest.mark.parametrize("case", POST_PROCESSORS)
def test_what_the_template_adds(case, tmp_path):
    single, adds = POST_PROCESSORS[case]
    write_model("qwen2", tmp_path)
    value = byte_level_tokenizer("qwen2")
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [],
        "special_tokens": {},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    special = load(TokenizerFiles(tmp_path))
    assert special.adds == adds
    if case == "another end":  # the tokenizer's own end of turn comes first, the configured one second
        assert (special.ids["eos"], special.ids["eot"]) == (5, 2)


def test_ids_that_are_not_the_tokens_own(tmp_path):
    """One id for two tokens of the vocabulary; which of them the tokenizers library takes is left to chance."""
    write_model("qwen2", tmp_path)
    value = byte_level_tokenizer("qwen2")
    value["model"]["vocab"]["Ġ!"] = 300
    (tmp_path / "tokenizer.json").write_text(json.dumps({**value, "added_tokens": []}))
    with pytest.raises(GGUFError, match="have the same id 300"):
        open_checkpoint(tmp_path)


def test_merges_with_spaces_are_encoded(tmp_path):
    write_model("qwen2", tmp_path)
    value = byte_level_tokenizer("qwen2")
    value["model"]["merges"] = [["a", " b"], ["c", "d"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    assert load(TokenizerFiles(tmp_path), merges=True).merges == ["a Ġb", "c d"]


def test_merges_of_merges_txt(tmp_path):
    write_model("qwen2", tmp_path)
    value = byte_level_tokenizer("qwen2")
    value["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n\nmalformed\nĠ t\n")
    assert load(TokenizerFiles(tmp_path), merges=True).merges == ["a b", "Ġ t"]
