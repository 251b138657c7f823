"""Groups of commands: what is meant by a word that is no command, and help that is never cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from quantmill.commands.console import UsageError
from quantmill.commands.old_spellings import refuse_old_spellings
from quantmill.errors import meant

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class DefaultGroup(TyperGroup):
    """A group whose command `default` may be left out: `quantmill evaluate a.gguf` means `evaluate compare a.gguf`."""

    default: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        refuse_old_spellings(args)
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            self._refuse_typo(args[0])
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def _refuse_typo(self, word: str) -> None:
        name = word.removeprefix("--")
        if name != word and name in self.commands and not is_option(self.commands[self.default], word):
            raise UsageError(f"no such option: {word}; did you mean the command {name}?")
        found = meant(word, self.commands)
        if found is not None and not word.startswith("-") and not Path(word).exists():
            raise UsageError(f"no such command: {word}; did you mean {found}?")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The commands, then the options of the default one, which is what most people look for."""
        self.format_commands(ctx, formatter)
        command = self.commands[self.default]
        with command.make_context(command.name, [], parent=ctx, resilient_parsing=True) as inner:
            with formatter.section(f"What {self.default} takes"):
                command.format_usage(inner, formatter)
            command.format_options(inner, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        write_commands(formatter, {name: first_sentence(c.help or "") for name, c in self.commands.items()})


# Texts that every name contains are found in all of them; any other empty word is a variable that was not set.
_MAY_BE_EMPTY = ("--include-weights", "--exclude-weights")


def refuse_empty_words(words: Sequence[str]) -> None:
    """An empty file name would mean this folder. Raises UsageError."""
    end = words.index("--") if "--" in words else len(words)
    for before, word in zip(("quantmill", *words), words, strict=False):
        if not word and before not in _MAY_BE_EMPTY:
            raise UsageError(f"the argument behind {before or 'an empty one'} is empty")
    for word in words[:end]:
        if word.startswith("--") and word.endswith("=") and word[:-1] not in _MAY_BE_EMPTY:
            raise UsageError(f"{word}: nothing stands behind it")


def is_option(command: Any, word: str) -> bool:
    return any(word in param.opts for param in command.params)


def write_commands(formatter: Any, lines: dict[str, str]) -> None:
    """A section of commands with their whole lines; click would cut them to the width of the terminal."""
    with formatter.section("Commands"):
        formatter.write_dl(list(lines.items()))


def first_sentence(help: str) -> str:
    return " ".join(help.split("\n\n")[0].split())
