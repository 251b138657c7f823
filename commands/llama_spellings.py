"""llama.cpp's own words where its tool does by options what a command of ours does by its name."""

from __future__ import annotations

from collections.abc import Sequence

from quantmill.commands.console import UsageError

_MODEL = ("-m", "--model")


def imatrix_words(words: Sequence[str]) -> list[str]:
    """`--in-file F --show-statistics` as `stats F`, `--in-file F --in-file G -o H` as `merge F G -o H`."""
    files: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, has_value, value = word.partition("=")
        if name == "--in-file":
            files.append(value if has_value else next(rest, ""))
        elif word != "--show-statistics":
            others.append(word)
    if "--show-statistics" in words:
        return ["stats", *files, *others]
    if not files:
        return list(words)
    if any(word in _MODEL for word in others):
        raise UsageError(
            "--in-file with -m: collect into a file of its own, then quantmill imatrix merge both"
        )
    return ["merge", *files, *others]
