"""Vocabularies made to tell splitting rules apart, as GGUF files without tensors, and texts that try them.

The merges are learned across words, so that a text cut at another place gives other tokens.
"""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from quantmill.gguf_io import pretokenizers
from quantmill.models.token_attributes import special_texts
from tests.support import gguf_builder as build

SPECIAL = (
    *special_texts().ends,
    *special_texts().always,
    *(text for *_, texts in special_texts().fills for text in texts),
    *("<s>", "<unk>", "<|user|>", "<|unused1|>", "[INST]", "<mask>", "[MASK]", "<|plamo:eos|>"),
)
NEEDED = (
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<mask>",
    "[MASK]",
)  # llama.cpp looks these up for some models
SOME_WORDS = (
    "the of and don't I'LL we'Ve 'RE 'tis HTML fooBar xYz x=y+1; __init__ 3.14 1234567 12345678 00 9 ١٢٣ ⅷ ² ½ "
    '... !!! -- ~~ `` $5 +1 <= ^^ || () [x] {y} \\ // /n "q" 東京 你好，世界 。 カタカナ ひらがな 한국어 ㄱㅏ ไทย '
    "ភាសា नमस्ते é e\u0301 İ ſ K ß ǅ ʰ ªº 🦙 👩‍👧 🚀 ∑ € © … “q” ‘s’ — <sentinel:3> IMGIMGABCZ"
)
WORDS = SOME_WORDS.split()
SPACES = (
    " ",
    " ",
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    " \n",
    "\t",
    "\r\n",
    "\v",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
)
BLOCKS = (
    *((0x00, 0x250), (0x300, 0x600), (0x900, 0xA00), (0x1E00, 0x2200), (0x3000, 0x3100), (0x4E00, 0xA000)),
    *((0xAC00, 0xD7A4), (0xF900, 0xFB10), (0xFE00, 0x11400), (0x1D400, 0x1FB00), (0x20000, 0x2EE60)),
    (0x30000, 0x110000),
)


def text(rng: random.Random, n: int = 40) -> str:
    """Words, numbers, signs, white space and special tokens of every kind, run together or not."""
    out = []
    for _ in range(n):
        kind = rng.choices(("word", "special", "odd", "number", "space"), (50, 12, 14, 4, 20))[0]
        if kind == "odd":
            out.append(chr(rng.randrange(*rng.choice(BLOCKS))))
        elif kind == "number":
            out.append(str(rng.randrange(10 ** rng.randrange(1, 14))))
        else:
            out.append(rng.choice({"word": WORDS, "special": SPECIAL, "space": SPACES}[kind]))
        out.append(rng.choice((" ", "")))
    return "".join(out)


@functools.cache
def merged(raw: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(tokens, merges) of byte-pair encoding over whole texts. raw: of UTF-8 with ▁, else of GPT-2's bytes."""
    rng = random.Random(0)
    corpus = [text(rng, 60) for _ in range(200)]
    core = Tokenizer(models.BPE())
    alphabet = [] if raw else pre_tokenizers.ByteLevel.alphabet()
    if raw:  # no line feeds: runs of them are never merged
        corpus = [line for one in corpus for line in one.replace(" ", "▁").split("\n")]
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    size = 3000 if raw else 1200
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(corpus, trainer)
    model = json.loads(core.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tuple(sorted(model["vocab"], key=model["vocab"].get)), tuple(merges)


def byte_pairs(
    path: Path, pre: str, rng: random.Random, *, name: str = "x", extra: Sequence[bytes] = ()
) -> Path:
    """A gpt2 vocabulary with special tokens of every type, some of their texts left out."""
    raw = pretokenizers.by_name()[pre].raw
    tokens, merges = map(list, merged(raw))
    if raw:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)] + ["\n" * n for n in range(1, 9)]
    types = _add_special(tokens, [1] * len(tokens), rng)
    pairs = [build.pair("tokenizer.ggml.model", build.STRING, "gpt2")]
    pairs += [build.pair("tokenizer.ggml.pre", build.STRING, pre)]
    pairs += [build.array("tokenizer.ggml.merges", build.STRING, merges), *extra]
    return _write(path, tokens, types, name, pairs)


def sentence_pieces(path: Path, rng: random.Random, *, name: str = "x", extra: Sequence[bytes] = ()) -> Path:
    """A llama vocabulary of the commonest strings, some with a space inside, with equal scores among them."""
    pieces = {"<unk>": (0.0, 2), "<s>": (0.0, 3), "</s>": (0.0, 3)}
    pieces |= {f"<0x{byte:02X}>": (0.0, 6) for byte in range(256)}
    sample = [text(rng).replace(" ", "▁") for _ in range(60)]
    common = Counter(one[i : i + n] for one in sample for n in range(1, 6) for i in range(len(one) - n + 1))
    ranked = sorted(common, key=lambda piece: (-common[piece] * len(piece), piece))[:1500]
    for i, piece in enumerate(ranked):
        pieces.setdefault(piece, (-float(rng.choice((i, rng.randrange(40)))), 1))
    tokens = list(pieces)
    types = _add_special(tokens, [kind for _, kind in pieces.values()], rng)
    scores = [score for score, _ in pieces.values()] + [-1000.0] * (len(tokens) - len(pieces))
    pairs = [build.pair("tokenizer.ggml.model", build.STRING, "llama")]
    pairs += [build.array("tokenizer.ggml.scores", build.F32, scores), *extra]
    return _write(path, tokens, types, name, pairs)


def _add_special(tokens: list[str], types: list[int], rng: random.Random) -> list[int]:
    chosen = [one for one in SPECIAL if one in NEEDED or rng.random() < 0.6]
    rng.shuffle(chosen)
    new = [one for one in chosen if one not in tokens]
    tokens += new
    return types + [rng.choice((1, 2, 3, 3, 4, 4, 5)) for _ in new]


def _write(path: Path, tokens: list[str], types: list[int], name: str, pairs: list[Any]) -> Path:
    head = [build.pair("general.architecture", build.STRING, "llama")]
    head += [build.pair("general.name", build.STRING, name)]
    head += [build.array("tokenizer.ggml.tokens", build.STRING, tokens)]
    head += [build.array("tokenizer.ggml.token_type", build.I32, types)]
    path.write_bytes(build.gguf([*head, *pairs]))
    return path
