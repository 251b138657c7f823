"""Compare token ids with llama.cpp's on real vocabularies (llama.cpp's source tree has some in models/), and time both.

    python -m bench.tokens TEXT path/to/llama.cpp/models/ggml-vocab-*.gguf

Each vocabulary encodes the text and made-up ones full of special tokens, with special tokens parsed and not.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from quantmill.gguf_io import GGUFSource
from quantmill.models.errors import ModelError
from quantmill.models.text import read_text
from quantmill.models.tokenizer import Tokenizer, from_metadata
from tests.support.llama_model import LlamaVocabulary
from tests.support.made_vocabularies import text as made_up

N_MADE_UP = 50
Result = TypeVar("Result")


def main() -> int:
    text, *paths = map(Path, sys.argv[1:])
    words = read_text(text)
    same = True
    print(f"{'vocabulary':32} {'tokens':>8} {'load s':>7} {'encode s':>9} {'llama.cpp s':>12}")
    for path in paths:
        try:
            ours, loading = _timed(_load, path)
        except ModelError as error:
            print(f"{path.name:32} {error}")
            continue
        with LlamaVocabulary(path) as theirs:
            found, encoding = _timed(ours.encode, words)
            wanted, reference = _timed(theirs.tokenize, words, True)
            differing = _differing(ours, theirs) + (found != wanted)
        same = same and not differing
        verdict = f"{differing} texts differ" if differing else "equal"
        print(f"{path.name:32} {len(found):8} {loading:7.2f} {encoding:9.2f} {reference:12.2f} {verdict}")
    return 0 if same else 1


def _differing(ours: Tokenizer, theirs: LlamaVocabulary) -> int:
    rng = random.Random(0)
    return sum(
        ours.encode(words, parse_special=special) != theirs.tokenize(words, True, special)
        for words in (made_up(rng) for _ in range(N_MADE_UP))
        for special in (False, True)
    )


def _load(path: Path) -> Tokenizer:
    return from_metadata(GGUFSource(path).metadata)


def _timed(work: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    start = time.perf_counter()
    result = work(*arguments)
    return result, time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
