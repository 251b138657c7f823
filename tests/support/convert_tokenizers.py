"""Made-up tokenizers for the tiny models: byte-level BPE under real definitions, WordPiece, tiktoken's ranks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tests.support.sentencepiece_files import (
    WORDS,
    write_byte_fallback,
    write_json,
    write_sentencepiece,
    write_unigram,
)

DATA = Path(__file__).parents[1] / "data" / "convert"
SPECIAL = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|im_start|>")
GLM = ("[gMASK]", "<|observation|>")


def write_tokenizer(directory: Path, kind: str, vocab_size: int) -> None:
    """kind: spm, unigram (both of SentencePiece), unigram-json, gemma4, bert-bge, kimi-k2 or hunyuan (tiktoken's form),
    or a definition of a pre-tokenizer; "+glm" behind it: with GLM's further special tokens."""
    if kind == "spm":
        write_sentencepiece(directory, vocab_size)
    elif kind in TIKTOKEN:
        _write_tiktoken(directory, kind)
    elif kind == "gemma4":
        write_byte_fallback(directory, vocab_size)
    elif kind in ("unigram", "unigram-json"):
        write_unigram(directory, kind == "unigram")
    elif kind == "bert-bge":
        _write_wordpiece(directory)
    else:
        _write_bpe(directory, kind)


def _write_wordpiece(directory: Path) -> None:
    """BERT's: letters, some words and what continues words."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = [chr(97 + i) for i in range(26)] + [".", ",", "我", "3"]
    texts = [*special, *letters, *(f"##{letter}" for letter in letters[:26]), *WORDS, "##ing", "##s"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ends = {text: {"id": text, "ids": [texts.index(text)], "tokens": [text]} for text in ("[CLS]", "[SEP]")}
    cls, sep = ({"SpecialToken": {"id": text, "type_id": 0}} for text in ends)
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in enumerate(special)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, {"Sequence": {"id": "A", "type_id": 0}}, sep],
            "pair": [
                cls,
                {"Sequence": {"id": "A", "type_id": 0}},
                sep,
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": ends,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: i for i, text in enumerate(texts)},
        },
    }
    write_json(directory / "tokenizer.json", definition)
    named = {f"{text[1:-1].lower()}_token": text for text in special}
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **named},
    )


def byte_level_tokenizer(pre: str) -> dict[str, Any]:
    """tokenizer.json with llama.cpp's pre-tokenizer `pre`: all bytes and the beginnings of some words."""
    pre, _, others = pre.partition("+")
    alphabet, tokens = _byte_characters(), SPECIAL + (GLM if others == "glm" else ())
    vocab = {token: i for i, token in enumerate(tokens)}
    for character in alphabet:
        vocab[character] = len(vocab)
    merges = []
    for word in [prefix + word for word in WORDS for prefix in ("Ġ", "")]:
        for end in range(1, len(word)):
            if word[: end + 1] not in vocab:
                vocab[word[: end + 1]] = len(vocab)
                merges.append([word[:end], word[end]])
    definition = DEFINITIONS[pre]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [{"id": i, "content": token, **flags, "special": True} for i, token in enumerate(tokens)]
    special.append(
        {"id": len(vocab), "content": "[added]", **flags, "special": False}
    )  # behind the vocabulary
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": definition["pre_tokenizer"],
        "post_processor": template if pre == "llama-bpe" else byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": definition["ignore_merges"],
            "vocab": vocab,
            "merges": merges,
        },
    }


def _write_bpe(directory: Path, pre: str) -> None:
    write_json(directory / "tokenizer.json", byte_level_tokenizer(pre))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    write_json(directory / "tokenizer_config.json", {**settings, "chat_template": "{{ messages }}"})


TIKTOKEN = {"kimi-k2": ("tiktoken.model", "TikTokenTokenizer"), "hunyuan": ("hy.tiktoken", "HYTokenizer")}


def _write_tiktoken(directory: Path, kind: str) -> None:
    """All bytes, then the beginnings of some words; the special tokens follow, which the class knows."""
    tokens = [bytes([byte]) for byte in range(256)]
    for word in [prefix + word for word in WORDS for prefix in (" ", "")]:
        for end in range(2, len(word) + 1):
            if word[:end].encode() not in tokens:
                tokens.append(word[:end].encode())
    file, name = TIKTOKEN[kind]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (directory / file).write_text("".join(lines), encoding="ascii")
    settings: dict[str, Any] = {"tokenizer_class": name, "chat_template": "{{ messages }}"}
    if kind == "kimi-k2":
        named = {len(tokens): "[BOS]", len(tokens) + 1: "[EOS]", len(tokens) + 2: "<|im_end|>"}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        settings |= {"bos_token": "[BOS]", "eos_token": "[EOS]"}
        settings["added_tokens_decoder"] = {str(i): {"content": text, **flags} for i, text in named.items()}
    write_json(directory / "tokenizer_config.json", settings)


def _byte_characters() -> list[str]:
    """The printable stand-ins of GPT-2's byte-level BPE, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [stand_in.get(byte, chr(byte)) for byte in range(256)]


DEFINITIONS = json.loads((DATA / "pretokenizers.json").read_text(encoding="utf-8"))
