"""The positional arguments and patterns of `quantmill quantize`, told apart as llama-quantize does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from quantmill.commands.console import UsageError, parsing
from quantmill.errors import meant

if TYPE_CHECKING:
    from quantmill.recipe import TypeRule

FILE_MARK = "file:\0"  # no argument of a process can hold a NUL


class OrderedPatterns(TyperCommand):
    """Keeps `--tensor-type` and `--tensor-type-file` in the order given: the first pattern that matches wins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined = []
        rest = iter(args)
        for argument in rest:
            name, has_value, value = argument.partition("=")
            if name == "--tensor-type-file":
                joined += ["--tensor-type", FILE_MARK + (value if has_value else next(rest, ""))]
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)


def check_together(*pairs: tuple[str, object, str, object]) -> None:
    """Pairs of options, each with its value, that exclude each other. Raises UsageError."""
    for first, one, second, other in pairs:
        if one and other:
            raise UsageError(f"{first} and {second} cannot be used together")


def positional(arguments: list[str], keep_split: bool) -> tuple[str, Path, str, int | None]:
    """MODEL [OUTPUT] TYPE [THREADS] → model, output, file type, threads; told apart as llama-quantize does.

    It takes `7B.gguf` for type 7 where a type may stand; here a type is a whole word.
    """
    from quantmill.recipe import find_file_type, get_file_type

    if not 2 <= len(arguments) <= 4:
        raise UsageError("expected MODEL [OUTPUT] TYPE [THREADS]")
    source, rest = arguments[0], arguments[1:]
    output: Path | None = None
    if find_file_type(rest[0]) is None and len(rest) > 1:
        output, rest = Path(rest[0]), rest[1:]
    _refuse_type_typo(arguments, output)
    with parsing():
        file_type = get_file_type(rest[0])
    if len(rest) > 2 or (len(rest) == 2 and not rest[1].isdecimal()):
        raise UsageError(f"expected a number of threads behind the type, not {' '.join(rest[1:])!r}")
    if output is None:
        output = default_output(source, file_type, "" if keep_split else ".gguf")
    return source, output, file_type, int(rest[1]) if len(rest) == 2 else None


def _refuse_type_typo(arguments: list[str], output: Path | None) -> None:
    """`model.gguf Q4_KM 8` must not write a file Q4_KM of type 8."""
    from quantmill.recipe import FILE_TYPES

    word = arguments[1]
    if (
        len(arguments) == 3
        and output is not None
        and arguments[2].isdecimal()
        and not set(word) & set("./\\")
    ):
        found = meant(word, FILE_TYPES)
        if found is not None:
            raise UsageError(
                f"unknown file type {word!r}; did you mean {found}? (A file of that name: ./{word})"
            )


def without_type(arguments: list[str], option: str) -> tuple[str, Path, int | None]:
    """MODEL OUTPUT [THREADS], where `option` says what the tensors become → model, output, threads."""
    if len(arguments) not in (2, 3) or not all(word.isdecimal() for word in arguments[2:]):
        raise UsageError(f"with {option} TYPE is left out: expected MODEL OUTPUT [THREADS]")
    return arguments[0], Path(arguments[1]), int(arguments[2]) if len(arguments) == 3 else None


def size_of(text: str, option: str) -> int:
    from quantmill.recipe import parse_size

    with parsing():
        return parse_size(text, option)


def default_output(source: str, file_type: str, suffix: str) -> Path:
    """llama-quantize's own name beside a GGUF file; of a directory or a model on the hub the model's name, so that two
    models of one place do not share it."""
    path = Path(source)
    if path.is_dir():
        return path.parent / f"{path.resolve().name}-{file_type}{suffix}"
    if path.exists():
        return path.parent / f"ggml-model-{file_type}{suffix}"
    # A model by name lies in the hub's cache, which is no place for results.
    return Path(f"{path.name}-{file_type}{suffix}")


def rules_of(texts: list[str]) -> tuple[TypeRule, ...]:
    from quantmill.gguf_io.filesystem import read_whole
    from quantmill.recipe import parse_rule, parse_rules

    rules: list[TypeRule] = []
    for text in texts:
        if text.startswith(FILE_MARK):
            path = Path(text.removeprefix(FILE_MARK))
            rules += parse_rules(read_whole(path).decode("utf-8-sig", "surrogateescape"), str(path))
        else:
            with parsing():
                rules.append(parse_rule(text))
    return tuple(rules)


def files_of(texts: Sequence[str]) -> list[str]:
    """The files among the `--tensor-type` and `--tensor-type-file` arguments, as OrderedPatterns joins them."""
    return [text.removeprefix(FILE_MARK) for text in texts if text.startswith(FILE_MARK)]


def check_calibration(
    texts: list[str], compensate: bool, has_target: bool, polish: bool, prune: bool = False
) -> None:
    """--calibration only names a text: something must want it. Raises UsageError."""
    if compensate and not texts:
        raise UsageError("--compensate needs a text: --calibration FILE")
    if polish and not texts:
        raise UsageError("--polish needs a text: --calibration FILE")
    if polish and prune:
        raise UsageError(
            "--polish wants the original of what it trains, which a pruned model has not; prune into a file with COPY "
            "first, and quantize that one"
        )
    if texts and not (compensate or has_target or polish or prune):
        raise UsageError(
            "--calibration only names a text; add --compensate, --polish, --target-size, --prune-layers or "
            "--prune-experts"
        )
    if has_target and len(texts) > 1:
        raise UsageError("--target-size measures on one text; give --calibration once")


def refuse_without_compensate(
    effort: str | None, chunks: int | None, alpha: float | None, damping: float | None, resume: bool
) -> None:
    """Raises UsageError for options of --compensate, which would do nothing without it. resume: nor for --polish."""
    options = {"--effort": effort, "--chunks": chunks, "--alpha": alpha, "--damping": damping}
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} belongs to --compensate; add it, or leave {name} out")
    if resume:
        raise UsageError("--resume goes on with a stopped --compensate or --polish; add one of them")
