"""The command line: find the command, call it, turn its errors into one line. Commands live in commands/."""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from quantmill.commands.console import fail_with_one_line, own_version

# In the order in which a newcomer meets them. The text stands here, not in the modules, so that `--help` loads none.
COMMANDS = {
    "quantize": "Make a smaller GGUF from a GGUF or a Hugging Face model; takes llama-quantize's arguments.",
    "convert": "Turn a Hugging Face model into a GGUF without quantizing it.",
    "imatrix": "Collect, merge and look into importance matrices: which weights matter.",
    "evaluate": "Measure what quantization lost: perplexity, KL divergence, tasks, speed.",
    "report": "Show measurements as tables, plots, an HTML page or a model card.",
    "recipe": "Show which type each tensor of a GGUF has, as a recipe that quantize --recipe follows.",
    "types": "List the file types and tensor types, with their bits per weight.",
    "devices": "List the devices that can quantize here.",
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
        return [
            name for name in COMMANDS if importlib.util.find_spec(f"quantmill.commands.{name}") is not None
        ]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        if cmd_name not in self.list_commands(ctx):
            return None
        return typer.main.get_command(importlib.import_module(f"quantmill.commands.{cmd_name}").app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: Any) -> Any:
        with fail_with_one_line():
            return super().invoke(ctx)


# Plain help instead of rich's: rich alone would double the start-up time.
app = typer.Typer(
    cls=_LazyCommands,
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quantmill {own_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `quantmill ARGUMENTS` (those of the process by default). 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, _stop)  # clean up as after Ctrl-C
    try:
        typer.main.get_command(app).main(arguments, prog_name="quantmill")
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
