"""The tokenizer of a checkpoint from whatever files hold it: tokenizer.json, or vocab.json and merges.txt, or a
tiktoken vocabulary; and the tokens that only other files name, under the ids transformers gives them.

Follows transformers' AutoTokenizer (tokenization_utils_base.py: _from_pretrained, tokenization_utils_tokenizers.py),
which llama.cpp's converter asks for its vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from quantmill.gguf_io import pretokenizers
from quantmill.gguf_io.byte_characters import byte_characters
from quantmill.gguf_io.convert.ranks import ranks_of
from quantmill.gguf_io.convert.tokenizer_json import KINDS, TokenizerFiles, content
from quantmill.gguf_io.errors import GGUFError

SENTENCEPIECE, TIKTOKEN = "tokenizer.model", ("tokenizer.model", "tiktoken.model")


@dataclass(frozen=True)
class _Class:
    """What a tokenizer class of transformers has in code. pre: name of the pre-tokenizer; tokens: its defaults."""

    pre: str
    tokens: Mapping[str, str]


_END = "<|endoftext|>"
_GPT2 = _Class("gpt-2", {"bos_token": _END, "eos_token": _END, "unk_token": _END})
_QWEN = {"eos_token": _END, "unk_token": _END, "pad_token": _END}
CLASSES: Mapping[str, _Class] = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": _Class("gpt-2", {**_GPT2.tokens, "pad_token": "<|padding|>"}),
    "Qwen2Tokenizer": _Class("qwen2", _QWEN),
    "Qwen3_5Tokenizer": _Class("qwen35", _QWEN),
}
# Which class a model type has where tokenizer_config.json names none.
_BY_MODEL_TYPE = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gpt2", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("olmo", "olmoe", "gpt_neox"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"),
}


def has_sentencepiece(files: TokenizerFiles) -> bool:
    """Whether tokenizer.model is there and meant for SentencePiece: a protocol buffer begins with its first piece's
    tag. Others (tiktoken, a Git LFS pointer) are passed over where another file holds the tokenizer."""
    path = files.path(SENTENCEPIECE)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        meant = file.read(1) == b"\n"
    return meant or (_tiktoken(files) is None and not files.has("tokenizer.json"))


def definition(files: TokenizerFiles) -> Mapping[str, Any]:
    """What tokenizer.json says, or would say. Raises GGUFError when no file holds a byte-level BPE tokenizer."""
    if files.has("tokenizer.json"):
        return files.tokenizer
    if files.has("vocab.json") and files.has("merges.txt"):
        known = CLASSES.get(_class_name(files))
        if known is None:
            raise GGUFError(
                f"{files.directory}: vocab.json and merges.txt do not say how {_class_name(files) or 'their class'} "
                "splits text; load the tokenizer with transformers and save it, which writes tokenizer.json"
            )
        merges = [merge.split(" ") for merge in merges_txt(files.path("merges.txt"))]
        return _made(files.vocabulary, merges, known.pre)
    ranks = _tiktoken(files)
    if ranks is not None:
        return _made(*_vocabulary_of(ranks), "llama-bpe")
    raise GGUFError(
        f"{files.directory}: no tokenizer.json, no tokenizer.model, no vocab.json with merges.txt; "
        "the vocabulary is missing"
    )


def _made(vocab: Mapping[str, int], merges: list[list[str]], pre: str) -> dict[str, Any]:
    known = next(one for one in pretokenizers.definitions() if one.name == pre)
    steps = [
        {"type": "ByteLevel", "add_prefix_space": step[1], "trim_offsets": True, "use_regex": step[2]}
        if step[0] == "ByteLevel"
        else {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": step[2], "invert": step[3]}
        for step in known.steps
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": known.ignore_merges}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "added_tokens": [], "model": model}


def merges_txt(path: Path) -> list[str]:
    """The merges of a file, "left right" each, without its version line and malformed ones."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if lines[0].strip().startswith("#"):
        del lines[0]
    pairs = (line.split(None, 3) for line in lines)
    return [" ".join(pair) for pair in pairs if len(pair) == 2]


def _tiktoken(files: TokenizerFiles) -> dict[bytes, int] | None:
    """Token → rank of a tiktoken file (base64 and a rank a line), None where there is none."""
    for name in TIKTOKEN:
        path = files.path(name)
        if not path.is_file():
            continue
        with path.open("rb") as file:
            if file.read(1) == b"\n":
                continue
        ranks = ranks_of(path)
        if ranks is not None:
            return ranks
    return None


def _vocabulary_of(ranks: Mapping[bytes, int]) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges that encode as the ranks do (convert_slow_tokenizer.py: TikTokenConverter)."""
    characters = byte_characters()

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    merges: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    vocab = {text(token): rank for token, rank in ranks.items()}
    return vocab, [[text(left), text(right)] for *_, left, right in sorted(merges)]


def _class_name(files: TokenizerFiles) -> str:
    """Name of transformers' class, without Fast; empty where it is not one that is known by model type."""
    named = files.settings.get("tokenizer_class")
    if isinstance(named, str) and named not in ("PreTrainedTokenizerFast", "PreTrainedTokenizer"):
        return named.removesuffix("Fast")
    return "" if named else _BY_MODEL_TYPE.get(str(files.config.get("model_type")), "")


def add_missing(files: TokenizerFiles, tokenizer: Tokenizer) -> None:
    """Give the tokenizer the tokens that only other files name.

    In transformers' order, each under the next free id: those of added_tokens_decoder, else of added_tokens.json, by
    their ids; then named special tokens, then the extra ones.
    """
    settings = files.settings
    special = _special_tokens(files)
    if "added_tokens_decoder" in settings:
        decoder = {int(i): _token(one) for i, one in (settings["added_tokens_decoder"] or {}).items()}
    else:
        marked = {content(one) for one in special}
        decoder = {
            int(i): AddedToken(text, normalized=text not in marked, special=text in marked)
            for text, i in files.added.items()
        }
    present = tokenizer.get_added_tokens_decoder().values()
    same = {repr(token) for token in present}
    to_add = [
        token for _, token in sorted(decoder.items(), key=lambda item: item[0]) if repr(token) not in same
    ]
    contents = {token.content for token in (*present, *to_add)}
    for one in special:
        if content(one) not in contents:
            contents.add(str(content(one)))
            to_add.append(_token(one, special=True))
    if to_add:
        tokenizer.add_tokens(to_add)


def named_tokens(files: TokenizerFiles) -> list[str]:
    """Texts of the special tokens that tokenizer_config.json and special_tokens_map.json name, in their order."""
    return list(dict.fromkeys(str(content(one)) for one in _special_tokens(files)))


def _special_tokens(files: TokenizerFiles) -> list[Any]:
    """Named ones, then extra ones, as text or object. Without added_tokens_decoder in tokenizer_config.json
    special_tokens_map.json goes before it."""
    settings = files.settings
    known = CLASSES.get(_class_name(files))
    named: dict[str, Any] = {**(known.tokens if known else {}), **_named(settings)}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if "added_tokens_decoder" not in settings:
        special = files.special
        named |= _named(special)
        extra = special.get("additional_special_tokens") or special.get("extra_special_tokens") or extra
    if isinstance(extra, Mapping):
        named, extra = {**named, **extra}, []
    return [one for one in (*named.values(), *extra) if content(one)]


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The *_token entries, in transformers' order; a null takes the class's default away."""
    keys = [f"{kind}_token" for kind in KINDS]
    keys += [key for key in settings if key.endswith("_token") and key not in keys]
    return {
        key: settings[key]
        for key in keys
        if key in settings and (settings[key] is None or isinstance(settings[key], str | Mapping))
    }


def _token(entry: Any, special: bool | None = None) -> AddedToken:
    if not isinstance(entry, Mapping):
        return AddedToken(entry, special=bool(special), normalized=not special)
    flags = {key: bool(entry.get(key, False)) for key in ("single_word", "lstrip", "rstrip", "special")}
    flags["special"] = flags["special"] if special is None else special
    return AddedToken(
        entry["content"], normalized=bool(entry.get("normalized", not flags["special"])), **flags
    )
