"""The positional arguments and patterns of `quantmill quantize`, told apart as llama-quantize does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmill.commands.console import UsageError, parsing
from quantmill.commands.options import WithRay
from quantmill.errors import meant

if TYPE_CHECKING:
    from quantmill.jobs.recipe import RecipeFile
    from quantmill.recipe import TypeRule

_TYPE_MARK = "{type}"  # in an output of several types
FILE_MARK = "file:\0"  # no argument of a process can hold a NUL


class OrderedPatterns(WithRay):
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


@dataclass(frozen=True)
class Positional:
    """MODEL [OUTPUT] TYPE[,TYPE…] [THREADS]: an output for each type."""

    source: str
    file_types: tuple[str, ...]
    outputs: tuple[Path, ...]
    n_threads: int | None


def positional(arguments: list[str], keep_split: bool) -> Positional:
    """The arguments told apart as llama-quantize does, which takes one type.

    It takes `7B.gguf` for type 7 where a type may stand; here a type is a whole word.
    """
    if not 2 <= len(arguments) <= 4:
        raise UsageError("expected MODEL [OUTPUT] TYPE [THREADS]")
    source, rest = arguments[0], arguments[1:]
    output: str | None = None
    if len(rest) > 1 and not _are_types(rest[0]):
        output, rest = rest[0], rest[1:]
    _refuse_type_typo(arguments, output)
    file_types = _file_types(rest[0])
    if len(rest) > 2 or (len(rest) == 2 and not rest[1].isdecimal()):
        raise UsageError(f"expected a number of threads behind the type, not {' '.join(rest[1:])!r}")
    outputs = _outputs(source, output, file_types, "" if keep_split else ".gguf")
    return Positional(source, file_types, outputs, int(rest[1]) if len(rest) == 2 else None)


def _are_types(text: str) -> bool:
    from quantmill.recipe import find_file_type

    return all(find_file_type(word) is not None for word in text.split(","))


def _file_types(text: str) -> tuple[str, ...]:
    """`Q4_K_M,Q5_K_M` → their names."""
    from quantmill.recipe import get_file_type

    with parsing():
        found = [get_file_type(word) for word in text.split(",")]
    for name in found:
        if found.count(name) > 1:
            raise UsageError(f"{text}: {name} is there twice; each type makes one file")
    return tuple(found)


def _outputs(source: str, output: str | None, file_types: Sequence[str], suffix: str) -> tuple[Path, ...]:
    """Where each type goes: OUTPUT itself for one; of several a pattern with {type}, or a folder for default names."""
    if output is None:
        return tuple(default_output(source, type, suffix) for type in file_types)
    if len(file_types) == 1:
        if output.endswith(("/", os.sep)):
            raise UsageError(
                f"{output}: names a folder; give the file in it that is to be written, such as "
                f"{output}{default_output(source, file_types[0], suffix).name}"
            )
        return (Path(output),)
    if _TYPE_MARK in output:
        return tuple(Path(output.replace(_TYPE_MARK, type)) for type in file_types)
    folder = Path(output)
    if folder.suffix.lower() == ".gguf" or (folder.exists() and not folder.is_dir()):
        raise UsageError(
            f"{output}: is one file, for {len(file_types)} types; give a folder, or a name with {_TYPE_MARK} in it "
            f"such as {folder.stem}-{_TYPE_MARK}.gguf"
        )
    if not folder.is_dir():
        raise UsageError(
            f"{output}: there is no such folder; create it, or give a name with {_TYPE_MARK} in it"
        )
    return tuple(folder / default_output(source, type, suffix).name for type in file_types)


def _refuse_type_typo(arguments: list[str], output: str | None) -> None:
    """`model.gguf Q4_KM 8` must not write a file Q4_KM of type 8."""
    from quantmill.recipe import FILE_TYPES

    if output is None or len(arguments) != 3 or not arguments[2].isdecimal() or set(output) & set("./\\"):
        return
    for word in output.split(","):
        found = meant(word, FILE_TYPES)
        if found is not None and not _are_types(word):
            raise UsageError(
                f"unknown file type {word!r}; did you mean {found}? (A file of that name: ./{output})"
            )


def told_apart(
    arguments: list[str], keep_split: bool, has_target: bool, recipe: RecipeFile | None
) -> Positional:
    """The arguments; without a TYPE where a target size or a recipe says what the tensors become."""
    if not has_target and recipe is None:
        return positional(arguments, keep_split)
    if len(arguments) not in (2, 3) or not all(word.isdecimal() for word in arguments[2:]):
        option = "--recipe" if recipe is not None else "--target-size or --target-bpw"
        raise UsageError(f"with {option} TYPE is left out: expected MODEL OUTPUT [THREADS]")
    file_type = "Q8_0" if recipe is None else recipe.file_type  # of a target, until the types are found
    n_threads = int(arguments[2]) if len(arguments) == 3 else None
    return Positional(arguments[0], (file_type,), (Path(arguments[1]),), n_threads)


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
