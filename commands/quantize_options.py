"""The options of `quantmill quantize` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL [OUTPUT] TYPE[,TYPE...] [THREADS]",
        help="A GGUF file (of a split model its first file), a Hugging Face directory or org/name on the hub; "
        "the file to write, by default ggml-model-TYPE.gguf beside a file, NAME-TYPE.gguf for a directory or "
        "org/NAME; a file type as `quantmill types` "
        "lists them, by name or number, or COPY. Several are made from one reading of the model; OUTPUT is then a "
        "folder, or a name with {type} in it.",
    ),
]
Imatrix = Annotated[str | None, typer.Option(metavar="FILE", help="Importance matrix, .gguf or .dat.")]
IncludeWeights = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Use importance only where the name contains TEXT."),
]
ExcludeWeights = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Use no importance where the name contains TEXT.")
]
TensorType = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=TYPE",
        help="Type of the tensors whose name matches a regular expression, e.g. attn_v=q8_0. The first match wins.",
    ),
]
TensorTypeFile = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="More of these, separated by white space; # begins a comment."),
]
RecipeFrom = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="What each tensor becomes (see `quantmill recipe`), instead of TYPE: MODEL OUTPUT [THREADS]. "
        "--tensor-type and its like go first.",
    ),
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Find the types that lose least in a file of at most SIZE (4.6GiB, 4600M), instead of TYPE: MODEL "
        "OUTPUT [THREADS].",
    ),
]
TargetBpw = Annotated[
    float | None, typer.Option(metavar="BITS", help="The same for so many bits per weight.")
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[=WEIGHT]",
        help="Text, plain or .jsonl conversations. With a target: measure the KL divergence of tensors on its "
        "second half; without, losses are guessed from the error of the weights. With --compensate: what codes are "
        "fitted to; repeatable.",
    ),
]
MeasureChunks = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Chunks of 256 tokens to measure on. The model's own predictions of them are held: 115 MB a chunk with a "
        "vocabulary of 150 000. [default: 8]",
    ),
]
MinType = Annotated[
    str | None, typer.Option(metavar="TYPE", help="With a target: the smallest type to choose.")
]
MaxType = Annotated[
    str | None, typer.Option(metavar="TYPE", help="With a target: the largest. [default: Q8_0]")
]
TokenEmbeddingType = Annotated[str | None, typer.Option(metavar="TYPE", help="Of the token embeddings.")]
OutputTensorType = Annotated[str | None, typer.Option(metavar="TYPE", help="Of output.weight.")]
LeaveOutputTensor = Annotated[bool, typer.Option("--leave-output-tensor", help="Copy output.weight.")]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mixture.")]
AllowRequantize = Annotated[
    bool,
    typer.Option("--allow-requantize", help="Convert tensors that are quantized already. Costs quality."),
]
NoFallback = Annotated[
    bool, typer.Option("--no-fallback", help="Fail where a row length forces another type than wanted.")
]
PruneLayers = Annotated[
    str | None,
    typer.Option(
        metavar="5,39|auto:N",
        help="Leave these layers out, or the N that are measured to lose least on the calibration text.",
    ),
]
PruneExperts = Annotated[
    str | None,
    typer.Option(
        metavar="PART|N",
        help="Leave a part of the experts of every layer out (0.25), or N of them: by what they do on the "
        "calibration text, without one by their weights.",
    ),
]
MaxDamage = Annotated[
    str | None,
    typer.Option(
        metavar="KLD|none",
        help="Refuse to prune where the mean KL divergence on held-back chunks is larger. [default: 0.5]",
    ),
]
ExpertCriterion = Annotated[
    str | None,
    typer.Option(
        metavar="best|REAP|strength|count|AIMER",
        help="By what experts are chosen. [default: what is measured to lose least]",
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge", help="Average experts that leave into those they are most like, where that helps."
    ),
]
NoHeal = Annotated[
    bool,
    typer.Option("--no-heal", help="Leave the matrices that stay as they are; by default some are refitted."),
]
OverrideKv = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=TYPE:VALUE", help="Set metadata; int, float, bool or str."),
]
KeepSplit = Annotated[bool, typer.Option("--keep-split", help="As many files as the model has.")]
SplitMaxSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Files of at most so many bytes of tensors, e.g. 500M, 2G, 4GiB."),
]
MaxBufferSize = Annotated[
    int | None, typer.Option(metavar="MIB", min=1, help="Memory for rows under way. [default: 128]")
]
Search = Annotated[
    str,
    typer.Option(
        metavar="default|thorough",
        help="How scales are searched: as llama.cpp does, with its bytes, or for the smallest squared error under "
        "the importance, in about five times the time. Same types, same size.",
    ),
]
StrictDevice = Annotated[
    bool,
    typer.Option(
        "--strict-device",
        help="Stop with an error where the device is not right or does not work, and the CPU would do its work.",
    ),
]
Compensate = Annotated[
    bool,
    typer.Option(
        "--compensate",
        help="Choose codes that undo each other's errors on the calibration text: minutes, not seconds.",
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(metavar="fast|normal|thorough", help="How long --compensate searches. [default: normal]"),
]
FittedChunks = Annotated[
    int | None, typer.Option(metavar="N", min=4, help="Chunks of 512 tokens that --compensate uses.")
]
Alpha = Annotated[
    float | None,
    typer.Option(help="Share of earlier layers' losses made good. [default: chosen on held-back chunks]"),
]
Damping = Annotated[float | None, typer.Option(help="Of second moments, times their mean. [default: 0.01]")]
GoOn = Annotated[
    bool,
    typer.Option("--resume", help="Go on with a stopped --compensate or --polish, or a killed --ray."),
]
KeepNorms = Annotated[
    bool,
    typer.Option(
        "--keep-norms",
        help="--compensate leaves the weights of norms as they are, so that adapters of the model fit the file.",
    ),
]
Polish = Annotated[
    bool,
    typer.Option(
        "--polish",
        help="Then train scales, norms and codes on the calibration text against the model, as `quantmill polish` "
        "does; where that does not help, the plain file is kept.",
    ),
]
