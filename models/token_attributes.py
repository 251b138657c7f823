"""Which tokens llama.cpp takes whole out of a text, by rules of its own beside the types in the file.

When it loads a vocabulary llama.cpp changes the attributes of tokens by their text, and by the model's name
(llama-vocab.cpp: llama_vocab::impl::load). What follows from that for cutting a text is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from quantmill.models.libstdcxx import first_in_hash_order, sorted_as_std_sort

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type


@dataclass(frozen=True)
class SpecialTexts:
    """Texts of tokens that get other attributes.

    ends: of a turn or the text; control tokens whatever their type. fills: (kind, its old name, texts) for filling
    in the middle; of each kind the first found becomes a control token, unless the file names one. always: matched
    even where special tokens are not parsed (gpt-oss renders them). end_is_no_end: with all of a group in a
    vocabulary <|end|> ends a message, not the answer, and is matched always.
    """

    ends: tuple[str, ...]
    fills: tuple[tuple[str, str | None, tuple[str, ...]], ...]
    always: tuple[str, ...]
    end_is_no_end: tuple[frozenset[str], ...]


@cache
def special_texts() -> SpecialTexts:
    table = json.loads(files("quantmill.models").joinpath("special_texts.json").read_text(encoding="utf-8"))
    return SpecialTexts(
        tuple(table["ends"]),
        tuple((row["kind"], row["old"], tuple(row["texts"])) for row in table["fills"]),
        tuple(table["always"]),
        tuple(map(frozenset, table["end_is_no_end"])),
    )


@dataclass(frozen=True)
class WholeToken:
    """A token that is cut out of a text as a whole.

    always: even where special tokens are not parsed. lstrip, rstrip: it takes the white space beside it along.
    """

    text: str
    id: int
    always: bool
    lstrip: bool = False
    rstrip: bool = False


def whole_tokens(
    tokens: Sequence[str],
    types: Sequence[int],
    special_id: Callable[[str], int | None],
    names: Mapping[str, str],
) -> list[WholeToken]:
    """The tokens to look for, in the order in which to look: longest in bytes first.

    special_id: of a kind ("eos", "fim_pre", …), None where the file names none inside the vocabulary.
    names: general.name, general.architecture and tokenizer.ggml.pre, "" where the file has none.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    kinds = {i: kind for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    fills = _mark_fills(tokens, ids, kinds, special_id)
    for text in special_texts().ends:
        if text in ids and kinds.get(ids[text]) != CONTROL:
            kinds[ids[text]] = CONTROL
    for text in special_texts().always:
        if text in ids:
            kinds[ids[text]] = USER_DEFINED
    if "<|end|>" in ids and any(group <= ids.keys() for group in special_texts().end_is_no_end):
        kinds[ids["<|end|>"]] = USER_DEFINED
    ends = {
        fills.get(kind, special_id(kind)) for kind in ("fim_pad", "fim_rep", "fim_sep", "eos", "eot", "eom")
    }
    plain_end = "<|tool_response>" in ids or ids.get("<|plamo:eos|>", -1) in ends
    if plain_end and "</s>" in ids:
        kinds.pop(ids["</s>"], None)
    lstrip, rstrip = _stripping(names)
    found = sorted_as_std_sort(sorted(kinds), lambda i: -len(tokens[i].encode("utf-8", "surrogateescape")))
    return [
        WholeToken(
            tokens[i],
            i,
            always=kinds[i] == USER_DEFINED,
            lstrip=tokens[i] == lstrip,
            rstrip=rstrip and tokens[i] not in ("<unk>", "<s>", "<|endoftext|>"),
        )
        for i in found
    ]


def _mark_fills(
    tokens: Sequence[str],
    ids: Mapping[str, int],
    kinds: dict[int, int],
    special_id: Callable[[str], int | None],
) -> dict[str, int]:
    """Make the token of each role a control token; returns those that the file does not name."""
    found = {}
    for kind, old, texts in special_texts().fills:
        if special_id(kind) is not None or (old and special_id(old) is not None):
            continue
        present = [text for text in texts if text in ids]
        if len(present) > 1 and any(kinds.get(ids[text]) != CONTROL for text in present):
            present = [first_in_hash_order(tokens, present)]
        if present:
            found[kind] = ids[present[0]]
            kinds[ids[present[0]]] = CONTROL
    return found


def _stripping(names: Mapping[str, str]) -> tuple[str | None, bool]:
    """The token that takes the white space before it along, and whether all take what follows."""
    pre, architecture = names["tokenizer.ggml.pre"], names["general.architecture"]
    name = names["general.name"].lower()
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        return "<mask>", False
    if "phi-3" in name or "phi3" in name:
        return None, True
    return ("[MASK]", False) if "modern-bert" in name else (None, False)
