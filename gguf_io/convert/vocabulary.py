"""Vocabularies: byte-level BPE from tokenizer.json, SentencePiece from tokenizer.model.

Token texts, types and scores as llama.cpp wants them (conversion/base.py: get_vocab_base,
_create_vocab_sentencepiece). Ids that no token has, up to the model's vocab_size, become unused padding tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from quantmill.gguf_io.convert import tokenizer_files
from quantmill.gguf_io.convert.sentencepiece_model import read_pieces
from quantmill.gguf_io.convert.tokenizer_json import KINDS, TokenizerFiles, content
from quantmill.gguf_io.errors import GGUFError

SPACE = "▁"  # how SentencePiece writes a space
CONTINUES = "##"  # what WordPiece writes before a token inside a word
UNSCORED = -1000.0
PADDING_SCORE = -10000.0


@dataclass
class Vocabulary:
    """texts, types (gguf TokenType), scores (None for BPE), one for each id. named_elsewhere: ids of the special
    tokens that are in no vocabulary file and get ids behind it."""

    texts: list[str]
    types: list[int]
    scores: list[float] | None = None
    named_elsewhere: dict[str, int] = field(default_factory=dict)


def looks_special(text: str) -> bool:
    """Added tokens that models forgot to mark: command-r, deepseek-coder, gemma."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def load_tokenizer(files: TokenizerFiles, kind: str = "BPE") -> Tokenizer:
    """The tokenizer of a directory, tokens that only other files name included, under transformers' ids.

    kind: of vocabulary, as tokenizer.json calls it. Raises GGUFError when it cannot be used.
    """
    path = files.path("tokenizer.json")
    found = tokenizer_files.definition(files)
    model = found.get("model") or {}
    if model.get("type", "BPE") != kind:
        raise GGUFError(
            f"{path}: its vocabulary is {model.get('type', 'BPE')!r}; of this architecture llama.cpp's converter takes "
            f"{kind} from such a file"
        )
    wordpiece = {"continuing_subword_prefix": CONTINUES} if kind == "WordPiece" else {}
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key) and model[key] != wordpiece.get(key):
            raise GGUFError(f"{path}: {key} {model[key]!r}; llama.cpp has no such tokenizer")
    try:
        tokenizer = (
            Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_str(json.dumps(found))
        )
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for every fault of the file
        raise GGUFError(f"{path if path.is_file() else files.directory}: not a tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer_files.add_missing(files, tokenizer)
    return tokenizer


def ids_of(
    files: TokenizerFiles, tokenizer: Tokenizer, text: str, add_special_tokens: bool = False
) -> list[int]:
    """The tokens of a text. Raises GGUFError where the tokenizer has no way to write it."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for every fault of the file
        raise GGUFError(f"{files.directory}: its tokenizer cannot split a text ({error})") from None


def byte_level_bpe(files: TokenizerFiles, tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """The vocabulary of a byte-level BPE tokenizer. Raises GGUFError when it is larger than the model's."""
    by_id = _texts_by_id(files, tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    if by_id and max(by_id) >= vocab_size:
        raise GGUFError(
            f"{files.directory}: the tokenizer has token {max(by_id)}, config.json's vocab_size is {vocab_size}; "
            "the files are not of one model"
        )
    texts, types = [], []
    for i in range(vocab_size):
        text = by_id.get(i)
        if text is None:
            text, kind = f"[PAD{i}]", TokenType.UNUSED
        elif i in added:
            text, kind = _added_token(files, tokenizer, added[i], text)
        else:
            kind = TokenType.NORMAL
        texts.append(text)
        types.append(int(kind))
    return Vocabulary(texts, types)


def wordpiece(files: TokenizerFiles, tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """The vocabulary of BERT: what begins a word has a mark there, not what continues one."""
    found = byte_level_bpe(files, tokenizer, vocab_size)
    pairs = zip(found.texts, found.types, strict=True)
    found.texts = [text if kind == TokenType.CONTROL else _marked(text) for text, kind in pairs]
    return found


def _marked(text: str) -> str:
    return text.removeprefix(CONTINUES) if text.startswith(CONTINUES) else SPACE + text


def _texts_by_id(files: TokenizerFiles, tokenizer: Tokenizer) -> dict[int, str]:
    by_id: dict[int, str] = {}
    for text, token_id in tokenizer.get_vocab().items():
        other = by_id.setdefault(token_id, text)
        if other != text:
            both = " and ".join(sorted((repr(text), repr(other))))
            raise GGUFError(f"{files.path('tokenizer.json')}: {both} have the same id {token_id}")
    return by_id


def _added_token(
    files: TokenizerFiles, tokenizer: Tokenizer, token: AddedToken, text: str
) -> tuple[str, TokenType]:
    if not token.normalized:  # llama.cpp takes added tokens as already normalized
        text = tokenizer.decode(ids_of(files, tokenizer, text), skip_special_tokens=False)
    if token.special or looks_special(text):
        return text, TokenType.CONTROL
    return text.replace(SPACE, " "), TokenType.USER_DEFINED


def is_byte_fallback_bpe(files: TokenizerFiles) -> bool:
    """True when tokenizer.json is SentencePiece's BPE in the form of the tokenizers library."""
    model = files.tokenizer.get("model") or {}
    decoder = files.tokenizer.get("decoder") or {}
    return (
        model.get("type") == "BPE" and bool(model.get("byte_fallback")) and decoder.get("type") == "Sequence"
    )


def byte_fallback_bpe(files: TokenizerFiles, tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """SentencePiece's BPE from tokenizer.json: no scores there, so merges rank by UNSCORED like llama.cpp's."""
    by_id = _texts_by_id(files, tokenizer)
    base = set(files.tokenizer["model"]["vocab"].values())
    settings = files.settings
    named = {content(settings.get(f"{kind}_token")) for kind in KINDS}
    named |= {content(token) for token in settings.get("additional_special_tokens") or []}
    vocabulary = unnamed(vocab_size)
    for i, text in by_id.items():
        if i in base and _is_byte(text):
            kind = TokenType.BYTE
        elif text in named:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.NORMAL if i in base else TokenType.USER_DEFINED
        _set(vocabulary, i, text, kind, UNSCORED)
    return vocabulary


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def scored_by_merges(files: TokenizerFiles, tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """SentencePiece's BPE from tokenizer.json, for families that llama.cpp's converter wants tokenizer.model of.

    The merges were made from the scores, best first: a token scores by the first merge that makes it.
    """
    by_id = _texts_by_id(files, tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    made: dict[str, int] = {}
    for i, merge in enumerate(files.tokenizer["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made.setdefault(left + right, i)
    vocabulary = unnamed(vocab_size)
    for i, text in by_id.items():
        if i in added:
            special = added[i].special or looks_special(text)
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
            _set(vocabulary, i, text if special else text.replace(SPACE, " "), kind, UNSCORED)
        elif _is_byte(text):
            _set(vocabulary, i, text, TokenType.BYTE, 0.0)
        else:
            _set(vocabulary, i, text, TokenType.NORMAL, -float(made.get(text, len(made))))
    return vocabulary


def unnamed(vocab_size: int) -> Vocabulary:
    """As many tokens that no file names."""
    return Vocabulary(
        [f"[PAD{i}]" for i in range(vocab_size)],
        [int(TokenType.UNUSED)] * vocab_size,
        [PADDING_SCORE] * vocab_size,
    )


def sentencepiece(files: TokenizerFiles, vocab_size: int, tokenizer_json_too: bool = False) -> Vocabulary:
    """The vocabulary of tokenizer.model, added tokens from the JSON files over it.

    tokenizer_json_too: those of tokenizer.json as well, and special only by their flag (Phi-3).
    """
    vocabulary = unnamed(vocab_size)
    for i, piece in enumerate(read_pieces(files.path("tokenizer.model"))):
        # llama.cpp makes no difference between user-defined and normal pieces of the model itself
        kind = TokenType.NORMAL if piece.kind == TokenType.USER_DEFINED else TokenType(piece.kind)
        _set(vocabulary, i, piece.text, kind, piece.score)
    for text, i in files.added.items():
        _set(vocabulary, i, text, TokenType.USER_DEFINED, UNSCORED)
    added = files.settings.get("added_tokens_decoder") or {}
    for i, token in added.items():
        _set_added(vocabulary, int(i), token, by_flag_only=tokenizer_json_too)
    if tokenizer_json_too:
        for token in files.tokenizer.get("added_tokens") or []:
            _set_added(vocabulary, int(token["id"]), token, by_flag_only=True)
    _add_named(vocabulary, tokenizer_files.named_tokens(files))
    return vocabulary


def _add_named(vocabulary: Vocabulary, texts: list[str]) -> None:
    """Special tokens that have no id yet get the next ones, as transformers numbers them."""
    used = [i for i, kind in enumerate(vocabulary.types) if kind != TokenType.UNUSED]
    following = max(used, default=-1) + 1
    for text in texts:
        if text not in vocabulary.texts and following < len(vocabulary.texts):
            _set(vocabulary, following, text, TokenType.CONTROL, UNSCORED)
            vocabulary.named_elsewhere[text] = following
            following += 1


def _set_added(vocabulary: Vocabulary, i: int, token: Any, by_flag_only: bool) -> None:
    text = str(content(token))
    if (isinstance(token, Mapping) and token.get("special")) or (not by_flag_only and looks_special(text)):
        _set(vocabulary, i, text, TokenType.CONTROL, UNSCORED)
    else:
        text = text if by_flag_only else text.replace(SPACE, " ")
        _set(vocabulary, i, text, TokenType.USER_DEFINED, UNSCORED)


def _set(vocabulary: Vocabulary, i: int, text: str, kind: TokenType, score: float) -> None:
    """Ids behind the model's vocabulary are passed over: no embedding row belongs to them."""
    if vocabulary.scores is not None and 0 <= i < len(vocabulary.texts):
        vocabulary.texts[i], vocabulary.types[i], vocabulary.scores[i] = text, int(kind), score
