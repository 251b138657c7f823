"""The options of `quantmill squeeze` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantmill.commands.options import at_least

Model = Annotated[
    str | None, typer.Argument(help="A GGUF file, a Hugging Face directory or org/name on the hub.")
]
Types = Annotated[
    str | None, typer.Option("--types", metavar="TYPE,TYPE", help="File types to make, one file each.")
]
Size = Annotated[
    list[str] | None,
    typer.Option(
        "--size", metavar="SIZE", help="The best file of at most this size (4.6GiB); several times."
    ),
]
Fit = Annotated[
    str | None,
    typer.Option("--fit", metavar="MEMORY", help="The best file that a card of 16GB runs with --ctx."),
]
Ctx = Annotated[
    int,
    typer.Option("--ctx", "-c", callback=at_least(1), help="Context in tokens that --fit leaves room for."),
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="TEXT",
        help="Text to learn from, several times: a file, a data set of the hub as org/name:file#column (parquet, "
        "JSONL, text), or self: what the model itself writes. [default: eaddario/imatrix-calibration:"
        "combined_en_small.parquet]",
    ),
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        "--evaluation",
        metavar="TEXT",
        help="Another text, which decides. [default: Salesforce/wikitext:wikitext-2-raw-v1/"
        "test-00000-of-00001.parquet]",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder of all results. [default: the model's name]"),
]
ImatrixChunks = Annotated[
    int | None,
    typer.Option("--imatrix-chunks", callback=at_least(1), help="Chunks of the calibration for importance."),
]
LearnChunks = Annotated[
    int | None,
    typer.Option(
        "--learn-chunks", callback=at_least(4), help="Chunks of the calibration for codes and polish."
    ),
]
SelfTokens = Annotated[
    int,
    typer.Option(
        "--self-tokens", callback=at_least(1024), help="Tokens that --calibration self has written."
    ),
]
Compensate = Annotated[
    bool,
    typer.Option("--compensate", help="Try codes that undo each other's errors, however long it takes."),
]
Polish = Annotated[
    bool,
    typer.Option("--polish", help="Train scales, norms and codes on the calibration, however long it takes."),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Neither of the two; else both, where --calibration names a text.")
]
Hours = Annotated[
    float, typer.Option("--hours", help="What the two may take; what does not fit is left out, and said.")
]
Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="NAME,NAME",
        help="Score hellaswag, winogrande, arc, mmlu, truthfulqa with llama.cpp's files, from the hub.",
    ),
]
NTasks = Annotated[
    int, typer.Option("--n-tasks", callback=at_least(1), help="So many of each, drawn as llama.cpp does.")
]
Rivals = Annotated[
    list[str] | None,
    typer.Option(
        "--rivals",
        metavar="ORG/NAME",
        help="A repository whose files of the same types the card compares sizes with; several times.",
    ),
]
MeasureRivals = Annotated[
    bool, typer.Option("--measure-rivals", help="Fetch those files and measure them too.")
]
NoSpeed = Annotated[bool, typer.Option("--no-speed", help="Do not time the files with llama.cpp.")]
KeepAll = Annotated[bool, typer.Option("--keep-all", help="Keep files that lost, among the stages.")]
BaseModel = Annotated[
    str | None,
    typer.Option(help="Repository of the original model, for the card. [default: as its card says]"),
]
LicenseName = Annotated[
    str | None, typer.Option("--license", help="Licence, for the card. [default: as its card says]")
]
Repository = Annotated[
    str | None, typer.Option("--repo", help="Where the files will lie on the hub, for the card.")
]
Status = Annotated[
    Path | None, typer.Option("--status", metavar="DIR", help="Say where the squeeze in DIR stands.")
]
Events = Annotated[
    bool, typer.Option("--events", help="Stream what happens on stdout, one JSON object a line.")
]
