"""Options that once took a file and are flags now: what is to be written instead."""

from __future__ import annotations

from collections.abc import Sequence

from quantmill.commands.console import UsageError

_ENDINGS = (".json", ".csv", "-")


def refuse_old_spellings(words: Sequence[str]) -> None:
    """`--json PATH` and `--csv PATH`, which wrote a file. Raises UsageError, exit code 2."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, has_value, value = word.partition("=")
        if name not in ("--json", "--csv"):
            continue
        path = value if has_value else following if following.endswith(_ENDINGS) else ""
        if name == "--csv" or has_value or path:
            place = path if path and path != "-" else "FILE" + name.replace("--", ".")
            raise UsageError(f"{name} takes no file: --json prints to standard output, -o {place} writes one")
