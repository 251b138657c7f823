"""The options of `quantmill imatrix collect` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantmill.commands.options import at_least

File = Annotated[
    list[str],
    typer.Option(
        "--file", "-f", help="Calibration text, or conversations (.jsonl); FILE=WEIGHT for a share."
    ),
]
Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="GGUF file, Hugging Face directory or repository name."),
]
FromChunk = Annotated[int, typer.Option("--from-chunk", "--chunk", help="Skip so many chunks first.")]
ProcessOutput = Annotated[bool, typer.Option(help="Also the output projection, tied or not.")]
Ppl = Annotated[bool, typer.Option(help="Print the text's perplexity while running.")]
Means = Annotated[bool, typer.Option(help="Also keep Σx (.in_sum), for the mean-based statistics.")]
RouteAllExperts = Annotated[bool, typer.Option(help="Show every token to every expert.")]
Nextn = Annotated[
    bool,
    typer.Option("--nextn", "--mtp", help="Also the layers that predict further tokens (NextN, MTP)."),
]
Seed = Annotated[int | None, typer.Option(help="Shuffle the chunks. [default: in order]")]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", callback=at_least(1), help="Chunks run together. [default: by the model and --ctx]"
    ),
]
Tokenizer = Annotated[Path | None, typer.Option(help="Hugging Face directory whose tokenizer to use.")]
OutputFrequency = Annotated[
    int,
    typer.Option("--output-frequency", "-ofreq", help="Save every so many chunks; 0: only when stopped."),
]
