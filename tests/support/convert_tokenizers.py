"""Made-up tokenizers for the tiny models: byte-level BPE under real definitions, SentencePiece."""

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
SPECIAL = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|im_start|>")
GLM = ("[gMASK]", "<|observation|>")


def write_tokenizer(directory: Path, kind: str, vocab_size: int) -> None:
    """kind: spm, unigram (both of SentencePiece), unigram-json, gemma4, bert-bge, kimi-k2 or hunyuan (tiktoken's form),
    or a definition of a pre-tokenizer; "+glm" behind it: with GLM's further special tokens."""
    if kind == "spm":
        _write_sentencepiece(directory, vocab_size)
    elif kind in TIKTOKEN:
        _write_tiktoken(directory, kind)
    elif kind == "gemma4":
        _write_byte_fallback(directory, vocab_size)
    elif kind in ("unigram", "unigram-json"):
        _write_unigram(directory, kind == "unigram")
    elif kind == "bert-bge":
        _write_wordpiece(directory)
    else:
        _write_bpe(directory, kind)


def _write_byte_fallback(directory: Path, vocab_size: int) -> None:
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
    _write_json(directory / "tokenizer.json", definition)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    settings |= {"pad_token": "<pad>", "unk_token": "<unk>", "chat_template": "{{ messages }}"}
    _write_json(directory / "tokenizer_config.json", settings)


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
    _write_json(directory / "tokenizer.json", definition)
    named = {f"{text[1:-1].lower()}_token": text for text in special}
    _write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **named},
    )


# Of sentencepiece's trainer, by the rules "U+FB01 becomes fi" and "U+FF21 becomes A".
CHARSMAP = base64.b64decode((DATA / "charsmap.txt").read_text(encoding="ascii"))


def _write_unigram(directory: Path, in_sentencepiece: bool) -> None:
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
    _write_json(
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
    _write_json(directory / "tokenizer.json", definition)


def _bytes(field: int, payload: bytes) -> bytes:
    """As _message, of any length."""
    size, digits = len(payload), []
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([field << 3 | 2, *digits, size]) + payload


def _write_sentencepiece(directory: Path, vocab_size: int) -> None:
    """tokenizer.model with control, byte and normal pieces, some added tokens; a few ids are left for padding."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("[user]", 0.0, 4), ("<unused0>", 0.0, 5)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    texts = list(dict.fromkeys(p for word in WORDS for p in (f"▁{word}", word)))
    letters = [chr(97 + i) for i in range(26)] + ["▁", ".", ",", "é", "我"]
    pieces += [(text, -float(i), 1) for i, text in enumerate(texts + letters)]
    assert len(pieces) < vocab_size - 8
    (directory / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    end = len(pieces)
    _write_json(directory / "added_tokens.json", {"<|im_start|>": end, "▁two▁words": end + 1})
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
    _write_json(directory / "tokenizer_config.json", settings)


def sentencepiece_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """tokenizer.model of (text, score, kind) pieces."""
    trainer = _message(2, b"\x18\x02\x98\x02\x01")  # model_type BPE, byte_fallback
    return b"".join(_message(1, _piece(*piece)) for piece in pieces) + trainer


def _piece(text: str, score: float, kind: int) -> bytes:
    message = _message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return message if kind == 1 else message + b"\x18" + bytes([kind])


def _message(field: int, payload: bytes) -> bytes:
    assert len(payload) < 128
    return bytes([field << 3 | 2, len(payload)]) + payload


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
    _write_json(directory / "tokenizer.json", byte_level_tokenizer(pre))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", {**settings, "chat_template": "{{ messages }}"})


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
    _write_json(directory / "tokenizer_config.json", settings)


def _byte_characters() -> list[str]:
    """The printable stand-ins of GPT-2's byte-level BPE, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [stand_in.get(byte, chr(byte)) for byte in range(256)]


DEFINITIONS = json.loads((DATA / "pretokenizers.json").read_text(encoding="utf-8"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
