"""Made-up vocabularies of SentencePiece: BPE and Unigram, in its own file or in tokenizer.json."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "convert"
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "it",
    "is",
    "was",
    "for",
    "with",
    "his",
    "they",
    "have",
    "not",
]
# Of sentencepiece's trainer, by the rules "U+FB01 becomes fi" and "U+FF21 becomes A".
CHARSMAP = base64.b64decode((DATA / "charsmap.txt").read_text(encoding="ascii"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def write_byte_fallback(directory: Path, vocab_size: int) -> None:
    """SentencePiece's BPE as Gemma 4 has it in tokenizer.json; every id has a token."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<|channel>", "<turn|>")
    letters = [chr(97 + i) for i in range(26)] + ["▁", ".", ",", "é", "我", "\n"]
    texts = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = []
    for word in [prefix + word for word in WORDS for prefix in ("▁", "")]:
        for end in range(1, len(word)):
            if word[: end + 1] not in texts:
                texts.append(word[: end + 1])
                merges.append([word[:end], word[end]])
    texts += [f"<unused{i}>" for i in range(vocab_size - len(texts))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    template = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in enumerate(special)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": merges,
        },
    }
    write_json(directory / "tokenizer.json", definition)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    settings |= {"pad_token": "<pad>", "unk_token": "<unk>", "chat_template": "{{ messages }}"}
    write_json(directory / "tokenizer_config.json", settings)


def write_sentencepiece(directory: Path, vocab_size: int) -> None:
    """tokenizer.model with control, byte and normal pieces, some added tokens; a few ids are left for padding."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("[user]", 0.0, 4), ("<unused0>", 0.0, 5)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    texts = list(dict.fromkeys(p for word in WORDS for p in (f"▁{word}", word)))
    letters = [chr(97 + i) for i in range(26)] + ["▁", ".", ",", "é", "我"]
    pieces += [(text, -float(i), 1) for i, text in enumerate(texts + letters)]
    assert len(pieces) < vocab_size - 8
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    end = len(pieces)
    write_json(directory / "added_tokens.json", {"<|im_start|>": end, "▁two▁words": end + 1})
    added = {
        str(end): {"content": "<|im_start|>", "special": False, "normalized": False},
        str(end + 1): {"content": "▁two▁words", "special": False, "normalized": True},
        "1": {"content": "<s>", "special": True, "normalized": False},
    }
    settings = {"added_tokens_decoder": added, "add_bos_token": True, "add_eos_token": False}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": {"content": "<unk>"}}
    settings |= {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": True}
    if not (directory / "chat_template.jinja").is_file():
        named = [
            {"name": "default", "template": "{{ messages }}"},
            {"name": "tool_use", "template": "{{ tools }}"},
        ]
        settings["chat_template"] = named
    write_json(directory / "tokenizer_config.json", settings)


def sentencepiece_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """tokenizer.model of (text, score, kind) pieces."""
    trainer = _message(2, b"\x18\x02\x98\x02\x01")  # model_type BPE, byte_fallback
    return b"".join(_message(1, _piece(*piece)) for piece in pieces) + trainer


def write_unigram(directory: Path, in_sentencepiece: bool) -> None:
    """XLM-R's: pieces with scores, four special tokens before and a mask behind them. Both files are
    there where one is SentencePiece's."""
    texts = list(dict.fromkeys(piece for word in WORDS for piece in (f"▁{word}", word[:2], word[1:])))
    texts += [
        letter for letter in [*map(chr, range(97, 123)), "▁", ".", ",", "é", "我"] if letter not in texts
    ]
    pairs = [(text, -2.0 - i / 8) for i, text in enumerate(texts)]
    special = ("<s>", "<pad>", "</s>", "<unk>")
    names = {
        "bos": "<s>",
        "pad": "<pad>",
        "eos": "</s>",
        "unk": "<unk>",
        "cls": "<s>",
        "sep": "</s>",
        "mask": "<mask>",
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "clean_up_tokenization_spaces": True,
    }
    write_json(
        directory / "tokenizer_config.json",
        settings | {f"{kind}_token": text for kind, text in names.items()},
    )
    if in_sentencepiece:
        first = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
        normalizer = _bytes(2, CHARSMAP) + b"\x18\x01\x20\x01"
        pieces = b"".join(_message(1, _piece(*piece)) for piece in [*first, *((*pair, 1) for pair in pairs)])
        (directory / "sentencepiece.bpe.model").write_bytes(
            pieces + _message(2, b"\x18\x01") + _bytes(3, normalizer)
        )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocab = [*((text, 0.0) for text in special), *pairs, ("<mask>", 0.0)]
    ids = {text: i for i, (text, _) in enumerate(vocab)}
    begin, end = ({"SpecialToken": {"id": text, "type_id": 0}} for text in ("<s>", "</s>"))
    one, two = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[text], "content": text, **flags} for text in (*special, "<mask>")],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, one, end],
            "pair": [begin, one, end, end, two, end],
            "special_tokens": {
                text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in ("<s>", "</s>")
            },
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }
    write_json(directory / "tokenizer.json", definition)


def _piece(text: str, score: float, kind: int) -> bytes:
    message = _message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return message if kind == 1 else message + b"\x18" + bytes([kind])


def _message(field: int, payload: bytes) -> bytes:
    assert len(payload) < 128
    return bytes([field << 3 | 2, len(payload)]) + payload


def _bytes(field: int, payload: bytes) -> bytes:
    """As _message, of any length."""
    size, digits = len(payload), []
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([field << 3 | 2, *digits, size]) + payload
