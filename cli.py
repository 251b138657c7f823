"""The command line: find the command, call it, turn its errors into one line. Commands live in commands/."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from quantmill import __version__
from quantmill.commands.console import (
    UsageError,
    fail_with_one_line,
    flush_output,
    prepare_streams,
    print_line,
    set_verbosity,
    warnings_in_one_line,
)
from quantmill.commands.groups import CONTEXT, is_option, refuse_empty_words, write_commands
from quantmill.commands.options import loudness
from quantmill.commands.signals import stoppable
from quantmill.errors import meant, one_line

# In the order in which a newcomer meets them. The text stands here, not in the modules, so that `--help` loads none.
COMMANDS = {
    "squeeze": "From a model to a set of files: importance, candidates, the best of each, card and page.",
    "quantize": "Make a smaller GGUF from a GGUF or a Hugging Face model; takes llama-quantize's arguments.",
    "convert": "Turn a Hugging Face model into a GGUF without quantizing it.",
    "imatrix": "Collect, merge and look into importance matrices: which weights matter.",
    "polish": "Train scales, norms and codes of a quantized GGUF against the original: better at the same size.",
    "prune": "Measure what layers and experts are worth; write pruned models for others to train.",
    "evaluate": "Measure what quantization lost: perplexity, KL divergence, tasks, speed.",
    "publish": "Put the files of a squeeze on the Hugging Face hub, with their card.",
    "report": "Show measurements as tables, plots, an HTML page or a model card.",
    "recipe": "Show which type each tensor of a GGUF has, as a recipe that quantize --recipe follows.",
    "types": "List the file types and tensor types, with their bits per weight.",
    "devices": "List the devices that can quantize here.",
    "cache": "Show or clear what quantmill keeps between runs.",
}

_HELP = """Quantize language models to GGUF: the same bytes as llama.cpp, many times faster, and measured.

The two commands most people need:

\b
  quantmill quantize model-f16.gguf Q4_K_M
  quantmill quantize --imatrix imatrix.gguf model-f16.gguf small.gguf IQ3_XXS

Every command explains itself: quantmill COMMAND --help.
"""


class _LazyCommands(TyperGroup):
    """Imports the module of a command when it is called, and only then."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"quantmill.commands.{cmd_name}")
        return _completed(typer.main.get_command(module.app))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        write_commands(formatter, COMMANDS)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        if not ctx.resilient_parsing:
            refuse_empty_words(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if word not in COMMANDS and not word.startswith("-") and not ctx.resilient_parsing:
            raise UsageError(f"no such command: {word}; {_guess(word)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with fail_with_one_line():
            return super().invoke(ctx)


def _guess(word: str) -> str:
    command = meant(word, COMMANDS)
    if command is not None:
        return f"did you mean {command}?"
    if Path(word).exists():
        return f"did you mean quantmill quantize {word}?"
    return f"there are {', '.join(COMMANDS)}"


def _completed(command: Any) -> Any:
    """A command, and those below it, with what all have: -h, help of one width, -q and -v."""
    command.context_settings.update(CONTEXT)
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            _completed(below)
    else:
        command.params += loudness()
    return command


# Plain help instead of rich's: rich alone would double the start-up time.
app = typer.Typer(
    cls=_LazyCommands, help=_HELP, rich_markup_mode=None, add_completion=True, context_settings=CONTEXT
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantmill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar and no remarks on stderr.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="More on stderr: every tensor, every warning.")
    ] = False,
) -> None:
    set_verbosity(quiet, verbose)


_INTERRUPTED = 130
# Wrong usage as typer finds it (an option that is not there, a value that is no number); no public name of its own.
_FoundByTyper: Any = typer.BadParameter.__base__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `quantmill ARGUMENTS` (those of the process by default). 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    prepare_streams()
    try:
        with fail_with_one_line(), warnings_in_one_line(), stoppable():
            code = typer.main.get_command(app).main(arguments, prog_name="quantmill", standalone_mode=False)
            if code == _INTERRUPTED:  # typer's own answer where it has not called a command yet
                raise KeyboardInterrupt
            flush_output()
    except SystemExit as exit:
        code = exit.code
    except _FoundByTyper as error:
        print_line(f"error: {_usage_message(error)}")
        code = 2
    return code if isinstance(code, int) else 0


def _usage_message(error: Any) -> str:
    """One line, and where the help is."""
    message = one_line(error.format_message()).rstrip(".")
    # Versions of typer differ in how they quote.
    message = re.sub(r"^No such option:? '?([^\s']+?)'?(?=\.? |$)", r"no such option: \1", message)
    message = re.sub(
        r"\.? \(?(?:Possible options:|Did you mean(?: one of:)?) (.+?)[?)]+$",
        lambda found: f"; did you mean {found[1].replace(chr(39), '')}?",
        message,
    )
    extra = re.search(r"unexpected extra arguments?(?:\(s\))? \((\S+?)[\s)]", message)
    if extra and is_option(error.ctx.command, f"--{extra[1]}"):
        message += f"; did you mean --{extra[1]}?"
    path = error.ctx.command_path if error.ctx is not None else "quantmill"
    return f"{message[:1].lower()}{message[1:]} ({path} --help lists what there is)"


if __name__ == "__main__":
    sys.exit(main())
