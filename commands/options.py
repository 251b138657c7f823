"""Options that several commands have: spelled, checked and defaulted once.

An alias that llama.cpp's tools have for an option stands with it; what they have and quantmill says otherwise (`-m`,
`-ngl`) is taken by hidden options.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from quantmill.commands.console import UsageError, set_verbosity
from quantmill.errors import choices


def at_least(least: int) -> Callable[..., int | None]:
    """A check for an option's number, with one sentence for all."""

    def check(param: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and value < least:
            name = next(name for name in param.opts if name.startswith("--"))
            raise UsageError(f"{name} {value}: must be at least {least}")
        return value

    return check


def _known_device(value: str) -> str:
    for one in value.split(","):
        kind, _, number = one.strip().partition(":")
        if kind not in _DEVICES or (number and not number.isdecimal()):
            raise UsageError(f"--device {value}: unknown device {one.strip()!r}; {choices(kind, _DEVICES)}")
    return value


def _known_dtype(value: str) -> str:
    if value not in _DTYPES:
        raise UsageError(f"--dtype {value}: {choices(value, _DTYPES)}")
    return value


_DTYPES = ("auto", "float32", "bfloat16x3", "int16", "bfloat16", "float16")
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


def file_to_write(given: str | Path) -> Path:
    """The parser of an output, and of its default: `out/` names a folder, and is never made a file of that name."""
    text = str(given)
    if text.endswith(("/", os.sep)):
        raise typer.BadParameter(f"{text} names a folder; give the file in it that is to be written")
    return Path(text)


def output_option(help: str) -> Any:
    """--output, -o: a file to write."""
    return typer.Option("--output", "-o", parser=file_to_write, metavar="FILE", help=help)


NoNextn = Annotated[
    bool,
    typer.Option("--no-nextn", "--no-mtp", help="Leave out the layers that predict further tokens."),
]
NextnOnly = Annotated[
    bool,
    typer.Option(
        "--nextn-only", "--mtp", help="Only these, with embedding and output: a draft to speculate with."
    ),
]


# Also what is no address but can be nothing else: then it is said what one is.
_ADDRESS = re.compile(r"(?:\w+://)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d+|\d+(?:\.\d+){3}|\w+://.*")


class WithRay(TyperCommand):
    """`--ray` alone is a word of its own; HOST:PORT behind it belongs to it, unless a file is called so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_addresses(args))


def _with_addresses(words: Sequence[str]) -> list[str]:
    end = words.index("--") if "--" in words else len(words)
    found: list[str] = []
    for i, word in enumerate(words):
        if i < end and word == "--ray":
            found.append("--ray=auto")
        elif found[-1:] == ["--ray=auto"] and _ADDRESS.fullmatch(word) and not Path(word).exists():
            found[-1] = f"--ray={word}"
        else:
            found.append(word)
    return found


def on_workers(option: str, given: str | None, ray: str | None, here: Path) -> Path | None:
    """The folder that --source-on or --output-on means. here: what it is on this machine."""
    if given is None:
        return None
    if ray is None:
        raise UsageError(f"{option} {given}: belongs to --ray")
    word, _, folder = given.partition(":")
    if word != "workers" or given.endswith(":"):
        raise UsageError(f"{option} {given}: expected workers, or workers:FOLDER")
    if folder and not Path(folder).is_absolute():
        raise UsageError(f"{option} {given}: give the folder from / on, for workers run elsewhere")
    return Path(folder) if folder else here.absolute()


def folder_of(model: str | Path) -> Path:
    """A directory itself, a file's."""
    return Path(model) if Path(model).is_dir() else Path(model).parent


def later_layers(no_nextn: bool, nextn_only: bool) -> str:
    """The two options as open_checkpoint has them."""
    if no_nextn and nextn_only:
        raise UsageError("--no-nextn and --nextn-only cannot be used together")
    return "without" if no_nextn else "only" if nextn_only else "with"


Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", callback=at_least(0), help="CPU threads. [default: all cores]"),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[HOST:PORT]",
        help="Let the hosts of a Ray cluster do the work: the one at HOST:PORT, else the one that runs here, else "
        "one that is started for it. Model and output lie in a file system that all of them share.",
    ),
]
SourceOn = Annotated[
    str | None,
    typer.Option(
        "--source-on",
        metavar="workers[:FOLDER]",
        help="With --ray: each host reads its own copy of the model, in FOLDER, else where it lies here.",
    ),
]
OutputOn = Annotated[
    str | None,
    typer.Option(
        "--output-on",
        metavar="workers[:FOLDER]",
        help="With --ray: each host makes a split of the output on its own disk, in FOLDER, else where OUTPUT lies.",
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="For a model larger than the memory: read it layer by layer, once, all of the text through each layer.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=_known_device,
        help="auto, cpu, cuda, cuda:1, mps, xpu.",
    ),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "-ngl", "--gpu-layers", "--n-gpu-layers", metavar="N", hidden=True, help="0 means --device cpu."
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        callback=_known_dtype,
        help="Of activations: float32, bfloat16, float16; bfloat16x3 and int16: float32, but for products of numbers "
        "of 16 bits, faster where the CPU has AMX, or AVX512-VNNI. auto: these there, bfloat16 for imatrix on a GPU, "
        "else float32.",
    ),
]
Ctx = Annotated[
    int | None,
    typer.Option("--ctx", "-c", "--ctx-size", callback=at_least(1), help="Tokens in a chunk. [default: 512]"),
]
Chunks = Annotated[
    int | None, typer.Option("--chunks", callback=at_least(1), help="Only the first so many chunks.")
]
NTasks = Annotated[
    int | None,
    typer.Option(
        "--n-tasks",
        "--tasks",
        callback=at_least(1),
        help="Draw so many tasks of each file, as llama.cpp does.",
    ),
]
ParseSpecial = Annotated[
    bool, typer.Option("--parse-special", help="Read control tokens written out in the text.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and show what would be done; write nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="TEXT", help="Branch, tag or commit of a model on the hub."),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", help="Address of the hub or of a mirror of it."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an output of another kind than what is written; never an input."),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "-m", "--model", metavar="FILE", hidden=True, help="The model, as llama.cpp's tools take it."
    ),
]


def models_of(arguments: Sequence[str] | None, options: Sequence[str] | None) -> list[str]:
    """Models as arguments, or by -m as llama.cpp's tools take them; not both."""
    if arguments and options:
        raise UsageError(f"{arguments[0]} and -m {options[0]}: give models as arguments or by -m, not both")
    return list(arguments or options or ())


def device_of(device: str, n_gpu_layers: int | None) -> str:
    """--device, or what -ngl says of it: no layers on a GPU means the CPU."""
    if n_gpu_layers is None or n_gpu_layers > 0:
        return device
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device} and -ngl {n_gpu_layers} contradict each other")
    return "cpu"


def loudness() -> list[object]:
    """The options -q and -v, which every command has."""

    def lender(
        quiet: Annotated[
            bool,
            typer.Option(
                "--quiet",
                "-q",
                expose_value=False,
                callback=lambda wanted: set_verbosity(quiet=True) if wanted else None,
                help="No progress bar and no remarks on stderr.",
            ),
        ] = False,
        verbose: Annotated[
            bool,
            typer.Option(
                "--verbose",
                "-v",
                expose_value=False,
                callback=lambda wanted: set_verbosity(verbose=True) if wanted else None,
                help="More on stderr: every tensor, every warning.",
            ),
        ] = False,
    ) -> None:
        raise AssertionError("lends its options only")

    app = typer.Typer(add_completion=False)
    app.command()(lender)
    return [param for param in typer.main.get_command(app).params if param.name in ("quiet", "verbose")]
