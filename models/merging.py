"""Symbols to tokens by merging neighbours: byte-pair encoding and SentencePiece's bigrams, as llama.cpp does both.

Both merge the best pair of neighbours, leftmost first among equals, until no pair is left; they differ in what
ranks a pair (llama-vocab.cpp: llm_tokenizer_bpe_session, llm_tokenizer_spm_session).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence

from quantmill.gguf_io.byte_characters import byte_characters
from quantmill.gguf_io.pretokenizers import PreTokenizer
from quantmill.models.word_splitting import split_words

SPACE = "▁"

# (left, right) → its rank, lowest first; None where the two are not merged
Rank = Callable[[str, str], float | None]


def merged(symbols: Sequence[str], rank: Rank) -> list[str]:
    """What is left of the symbols when no two neighbours can be merged."""
    text = list(symbols)
    after = list(range(1, len(text) + 1))
    before = list(range(-1, len(text) - 1))
    queue: list[tuple[float, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        if left < 0 or right >= len(text):
            return
        found = rank(text[left], text[right])
        if found is not None:
            heapq.heappush(queue, (found, left, right, len(text[left]) + len(text[right])))

    for i in range(1, len(text)):
        offer(i - 1, i)
    while queue:
        _, left, right, size = heapq.heappop(queue)
        if not text[left] or not text[right] or len(text[left]) + len(text[right]) != size:
            continue  # one of the two was merged meanwhile
        text[left] += text[right]
        text[right] = ""
        after[left] = after[right]
        if after[right] < len(text):
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [symbol for symbol in text if symbol]


class Words:
    """Cuts a text with escaped spaces before spaces that no token reaches over, so that the parts can be
    merged apart and remembered. grown: every text that merging may make."""

    def __init__(self, grown: Sequence[str]) -> None:
        crossing = {c for text in grown if SPACE in text for c in re.findall(f"([^{SPACE}]){SPACE}", text)}
        inside = f"|(?<=[{re.escape(''.join(sorted(crossing)))}]){SPACE}+" if crossing else ""
        self._word = re.compile(f"{SPACE}*(?:[^{SPACE}]+{inside})*")

    def cut(self, text: str) -> list[str]:
        return [word for word in self._word.findall(text) if word]


class BytePairs:
    """Byte-pair encoding of the text between special tokens: callable text → ids.

    ids: token → id. merges: "left right" in the order of their rank. Bytes that no token stands for are left
    out, as llama.cpp does.
    """

    def __init__(self, ids: Mapping[str, int], merges: Sequence[str], rules: PreTokenizer) -> None:
        self._ids, self._rules = ids, rules
        self._ranks: dict[tuple[str, str], int] = {}
        for i, merge in enumerate(merges):
            cut = merge.find(" ", 1)
            if cut > 0:
                self._ranks.setdefault((merge[:cut], merge[cut + 1 :]), i)
        self._bytes = dict(enumerate(byte_characters()))
        self._words = Words([a + b for a, b in self._ranks]) if rules.escape_spaces else None
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        known, out = self._known, []
        for word in self._cut(text.replace(" ", SPACE) if self._rules.escape_spaces else text):
            found = known.get(word)
            if found is None:
                found = known[word] = self._encode(word)
            out.extend(found)
        return out

    def _cut(self, text: str) -> list[str]:
        pieces = split_words(text, self._rules.split)
        if self._words is None:
            return pieces
        return [word for piece in pieces for word in self._words.cut(piece)]

    def _encode(self, word: str) -> list[int]:
        if not self._rules.raw:
            word = word.encode().decode("latin-1").translate(self._bytes)
        whole = self._rules.ignore_merges or (self._rules.whole_newlines and not word.strip("\n"))
        if whole and word in self._ids:
            return [self._ids[word]]
        out: list[int] = []
        for symbol in merged(word, lambda left, right: self._ranks.get((left, right))):
            if symbol in self._ids:
                out.append(self._ids[symbol])
            elif self._rules.raw:
                parts = [f"<0x{byte:02X}>" for byte in symbol.encode()]
                out.extend(self._ids[part] for part in parts if part in self._ids)
            else:
                out.extend(self._ids[char] for char in symbol if char.isascii() and char in self._ids)
        return out


class SentencePieces:
    """SentencePiece's merging of the text between special tokens: callable text → ids.

    ids: token → id. scores: of each token, the best pair is the one whose token scores highest. Characters
    that are no token become their bytes; unknown stands for a byte that has no token.
    """

    def __init__(self, ids: Mapping[str, int], scores: Sequence[float], unknown: int) -> None:
        self._ids, self._scores, self._unknown = ids, scores, unknown
        self._words = Words(list(ids))
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        known, out = self._known, []
        for word in self._words.cut(text.replace(" ", SPACE)):
            found = known.get(word)
            if found is None:
                found = known[word] = self._encode(word)
            out.extend(found)
        return out

    def _rank(self, left: str, right: str) -> float | None:
        token = self._ids.get(left + right)
        return None if token is None else -self._scores[token]

    def _encode(self, word: str) -> list[int]:
        out: list[int] = []
        for symbol in merged(word, self._rank):
            if symbol in self._ids:
                out.append(self._ids[symbol])
            else:
                out.extend(self._byte(byte) for byte in symbol.encode("utf-8", "surrogateescape"))
        return out

    def _byte(self, byte: int) -> int:
        found = self._ids.get(f"<0x{byte:02X}>")
        if found is None and byte < 128:
            found = self._ids.get(chr(byte))
        return self._unknown if found is None else found
