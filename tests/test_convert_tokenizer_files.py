"""Whatever files hold a checkpoint's tokenizer: the GGUF has the tokens and ids of transformers' AutoTokenizer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quantmill.gguf_io.byte_characters import byte_characters
from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.convert.vocabulary import looks_special
from quantmill.gguf_io.errors import GGUFError
from quantmill.models.tokenizer import from_metadata
from tests.support.convert_models import write_model
from tests.support.convert_tokenizers import byte_level_tokenizer

TEXT = "The cat isn't on the mat,  12345 Ünï 我想 <tool> <done>\n"


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def settings(directory: Path, **changes: Any) -> None:
    path = directory / "tokenizer_config.json"
    write(path, {**json.loads(path.read_text()), **changes})


def added(directory: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    path = directory / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value["added_tokens"])
    write(path, value)


def token(text: str, **flags: Any) -> dict[str, Any]:
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        **flags,
    }


def in_decoder(directory: Path, more: dict[str, Any]) -> dict[str, Any]:
    """added_tokens_decoder with the tokens of tokenizer.json, as transformers writes it, and more."""
    tokens = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    return {str(one["id"]): {key: one[key] for key in one if key != "id"} for one in tokens} | more


def split_files(directory: Path, name: str, **more: Any) -> None:
    """vocab.json and merges.txt in place of tokenizer.json, for a tokenizer class of transformers."""
    value = json.loads((directory / "tokenizer.json").read_text())
    write(directory / "vocab.json", value["model"]["vocab"])
    merges = "".join(" ".join(merge) + "\n" for merge in value["model"]["merges"])
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (directory / "tokenizer.json").unlink()
    write(directory / "tokenizer_config.json", {"tokenizer_class": name, **more})


# The tiny qwen2: its last token, [added], has id 353 behind a vocabulary of 353; 512 embedding rows.
CASES: dict[str, Callable[[Path], Any]] = {
    "as it is": lambda d: None,
    "added_tokens.json": lambda d: write(d / "added_tokens.json", {"<tool>": 354, "<|im_start|>": 5}),
    "added_tokens.json with a gap": lambda d: write(d / "added_tokens.json", {"<b>": 400, "<a>": 380}),
    "special_tokens_map.json": lambda d: write(
        d / "special_tokens_map.json",
        {"pad_token": token("<mypad>"), "eos_token": "<done>", "additional_special_tokens": ["<x>", "<y>"]},
    ),
    "both": lambda d: (
        write(d / "added_tokens.json", {"<tool>": 354, "<x>": 355}),
        write(d / "special_tokens_map.json", {"additional_special_tokens": ["<x>", "<z>"]}),
    ),
    "tokenizer_config.json's eos_token": lambda d: settings(d, eos_token="<done>"),
    "an eos_token of several fields": lambda d: settings(
        d, eos_token={"__type": "AddedToken", **token("<done>")}
    ),
    "extra special tokens": lambda d: settings(d, additional_special_tokens=["<x>", "<s>", "the"]),
    "named extra special tokens": lambda d: settings(d, extra_special_tokens={"image_token": "<image>"}),
    "tokens of other names": lambda d: settings(d, image_token="<image>", audio_token="<audio>"),
    "added_tokens_decoder": lambda d: settings(
        d,
        added_tokens_decoder=in_decoder(
            d,
            {
                "400": token("<late>", special=True),
                "360": token("<early>", special=False),
                "361": token("<|looks|>", special=False, normalized=True),
            },
        ),
        additional_special_tokens=["<late>", "<x>"],
    ),
    "added_tokens_decoder beside the older files": lambda d: (
        settings(d, added_tokens_decoder=in_decoder(d, {"354": token("<tool>", special=False)})),
        write(d / "added_tokens.json", {"<unseen>": 355}),
        write(d / "special_tokens_map.json", {"pad_token": "<unseen too>"}),
    ),
    "a gap in tokenizer.json": lambda d: added(d, lambda tokens: tokens[-1].update(id=400)),
    "two tokens of one id": lambda d: added(
        d, lambda tokens: tokens.append({"id": 353, **token("[twin]", special=False)})
    ),
    "one token twice": lambda d: added(
        d, lambda tokens: tokens.append({"id": 354, **token("[added]", special=False)})
    ),
    "no tokenizer_config.json": lambda d: (
        (d / "tokenizer_config.json").unlink(),
        (d / "chat_template.jinja").unlink(missing_ok=True),
    ),
    "vocab.json and merges.txt": lambda d: split_files(d, "Qwen2Tokenizer", eos_token="</s>"),
    "vocab.json and merges.txt of GPT-2": lambda d: split_files(d, "GPT2TokenizerFast", eos_token="<done>"),
    "vocab.json, merges.txt and added_tokens.json": lambda d: (
        split_files(d, "Qwen2Tokenizer", bos_token=None, additional_special_tokens=["<|im_start|>"]),
        write(d / "added_tokens.json", {"<tool>": 353}),
    ),
    "byte-order marks": lambda d: [
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()) for path in (d / "tokenizer_config.json",)
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = write_model("qwen2", tmp_path)
    CASES[case](directory)
    metadata = open_checkpoint(directory).metadata
    if case == "byte-order marks":  # transformers cannot read those
        (directory / "tokenizer_config.json").write_bytes(
            (directory / "tokenizer_config.json").read_bytes()[3:]
        )
    theirs = AutoTokenizer.from_pretrained(str(directory))
    texts, types = metadata.value("tokenizer.ggml.tokens"), metadata.value("tokenizer.ggml.token_type")
    by_id = {i: text for text, i in theirs.get_vocab().items()}
    for i in range(512):
        text, flags = by_id.get(i, f"[PAD{i}]"), theirs.added_tokens_decoder.get(i)
        special = flags is not None and (flags.special or looks_special(text))
        kind = 5 if i not in by_id else 3 if special else 4 if flags else 1
        assert (texts[i], types[i]) == (text, kind), i
    assert from_metadata(metadata).encode(TEXT, parse_special=True, add_special=False) == theirs.encode(
        TEXT, add_special_tokens=False
    )
    if theirs.eos_token is not None and theirs.eos_token in theirs.get_vocab():
        named = json.loads((directory / "config.json").read_text()).get("eos_token_id")
        wanted = theirs.eos_token_id if named is None else named
        assert metadata.value("tokenizer.ggml.eos_token_id") in (wanted, theirs.eos_token_id)


def tiktoken_file() -> bytes:
    """base64 and rank a line, of the tiny vocabulary without its special tokens."""
    byte = {char: i for i, char in enumerate(byte_characters())}
    texts = [text for text in byte_level_tokenizer("llama-bpe")["model"]["vocab"] if not text.startswith("<")]
    texts.append("<")
    raw = [base64.b64encode(bytes(byte[char] for char in text)) for text in dict.fromkeys(texts)]
    return b"".join(one + b" %d\n" % i for i, one in enumerate(raw))


@pytest.mark.parametrize(
    "content",
    [
        b"IQ== 0\nIg== 1\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        b"",
        b"\xff\xfe",
    ],
    ids=["tiktoken", "Git LFS", "empty", "other"],
)
@pytest.mark.parametrize("name", ["llama-3.2", "qwen2"])
def test_a_tokenizer_model_that_is_no_sentencepiece_file_gives_way_to_tokenizer_json(
    name: str, content: bytes, tmp_path: Path
) -> None:
    directory = write_model(name, tmp_path)
    wanted = open_checkpoint(directory).metadata
    (directory / "tokenizer.model").write_bytes(content)
    assert dict(open_checkpoint(directory).metadata) == dict(wanted)


@pytest.mark.parametrize("file", ["tokenizer.model", "tiktoken.model"])
def test_tiktoken_alone(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    directory = write_model("llama-3.2", tmp_path)
    raw = tiktoken_file()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in raw.splitlines()}
    (directory / "tokenizer.json").unlink()
    (directory / file).write_bytes(raw)
    settings(
        directory, added_tokens_decoder={str(max(ranks.values()) + 1): token("<|eot_id|>", special=True)}
    )
    metadata = open_checkpoint(directory).metadata
    monkeypatch.setattr(TikTokenConverter, "load_tiktoken_bpe", staticmethod(lambda path: ranks))
    theirs: Tokenizer = TikTokenConverter(vocab_file="file", extra_special_tokens=["<|eot_id|>"]).converted()
    texts = metadata.value("tokenizer.ggml.tokens")
    assert all(texts[i] == text for text, i in theirs.get_vocab().items())
    assert metadata.value("tokenizer.ggml.pre") == "llama-bpe"
    ours = from_metadata(metadata)
    assert ours.encode(TEXT, add_special=False) == theirs.encode(TEXT, add_special_tokens=False).ids


def test_vocab_json_whose_class_is_not_known(tmp_path: Path) -> None:
    directory = write_model("qwen2", tmp_path)
    split_files(directory, "OfTomorrowTokenizer")
    with pytest.raises(GGUFError, match="do not say how OfTomorrowTokenizer splits text; load the tokenizer"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("special_tokens_map.json", {"pad_token": "<mypad>"}, {"pad": "<mypad>"}),
        ("special_tokens_map.json", {"extra_special_tokens": ["<x>", "<s>", "<y>"]}, {}),
        ("tokenizer_config.json", {"eos_token": "<done>", "tokenizer_class": "LlamaTokenizer"}, {}),
        ("added_tokens.json", {"<tool>": 0}, {}),
    ],
)
def test_tokens_beside_a_sentencepiece_model(
    file: str, content: dict[str, Any], named: dict[str, str], tmp_path: Path
) -> None:
    """They get the ids that transformers gives them, where the model has room."""
    from transformers import AutoTokenizer

    directory = write_model("llama", tmp_path)
    for other in ("added_tokens.json", "tokenizer_config.json"):
        (directory / other).unlink()
    first = next(
        i
        for i, text in enumerate(open_checkpoint(directory).metadata.value("tokenizer.ggml.tokens"))
        if text.startswith("[PAD")
    )
    write(directory / file, {text: first if i == 0 else i for text, i in content.items()})
    theirs = AutoTokenizer.from_pretrained(str(directory))
    metadata = open_checkpoint(directory).metadata
    texts, types = metadata.value("tokenizer.ggml.tokens"), metadata.value("tokenizer.ggml.token_type")
    new = {i: text for text, i in theirs.get_vocab().items() if i >= first}
    assert new
    assert {i: texts[i] for i in new} == new
    kinds = {i: 3 if theirs.added_tokens_decoder[i].special else 4 for i in new}
    assert {i: types[i] for i in new} == kinds
    assert texts[max(new) + 1].startswith("[PAD")
    for kind, text in named.items():
        key = {"pad": "padding"}[kind]
        assert metadata.value(f"tokenizer.ggml.{key}_token_id") == theirs.convert_tokens_to_ids(text)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "phi3", "llama"])
def test_sentencepiece_in_tokenizer_json_alone(name: str, tmp_path: Path) -> None:
    """Where llama.cpp's converter asks for tokenizer.model, the merges of tokenizer.json say as much. A Llama gets
    the scores that the converter gives it, all alike."""
    import sentencepiece
    from transformers import AutoTokenizer

    directory = write_model(name, tmp_path)
    (directory / "tokenizer.model").unlink()
    (directory / "added_tokens.json").unlink(missing_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{TEXT} the cat sat on that mat {i} times" for i in range(50)]),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    write(directory / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "legacy": True})
    core = AutoTokenizer.from_pretrained(str(directory))
    wanted = open_checkpoint(directory).metadata  # from tokenizer.model
    core.save_pretrained(str(directory))
    (directory / "tokenizer.model").unlink()
    metadata = open_checkpoint(directory).metadata
    for text in (TEXT, "the the cat\n that  mat 我", "") if name != "llama" else ():
        assert from_metadata(metadata).encode(text) == from_metadata(wanted).encode(text)
    texts, types = metadata.value("tokenizer.ggml.tokens"), metadata.value("tokenizer.ggml.token_type")
    assert list(texts) == list(wanted.value("tokenizer.ggml.tokens"))
    if name == "llama":
        scores = metadata.value("tokenizer.ggml.scores")
        assert {score for score, kind in zip(scores, types, strict=True) if kind != 5} == {-1000.0}
        assert [kind for kind, text in zip(types, texts, strict=True) if text.startswith("<0x")] == [6] * 256
        return
    assert [kind for kind in types if kind in (3, 4)] == [3, 3, 3]  # <unk> is special in tokenizer.json
