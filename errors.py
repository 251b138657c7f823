"""Errors that are meant for users: their root, many at once, and a package that is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType


class QuantmillError(ValueError):
    """Bad input or an unfulfillable wish: one plain sentence with the tensor, the value, the limit and the way out.

    Each package derives one of its own. Any other ValueError is a bug and keeps its traceback.
    """


class MissingPackageError(QuantmillError):
    """A package that only some uses need is not installed; the message holds the `pip install` that brings it."""


class ProblemsError(QuantmillError):
    """Several things that make one job impossible, found before it began; `problems` has a sentence for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(folded(problems)))
        self.problems = tuple(problems)


def one_line(text: object) -> str:
    """What an error of another library says, line feeds and runs of blanks made one blank."""
    return " ".join(str(text).split())


def last_line(error: BaseException) -> str:
    """What a traceback from elsewhere ends with."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1].strip()


def counted(n: int, thing: str, things: str = "") -> str:
    """`1 tensor`, `2 tensors`; things: where it is not `thing` and an s."""
    return f"{n} {thing if n == 1 else things or f'{thing}s'}"


def left_behind(path: object) -> str:
    """Said of a stopped run's unfinished work, where nobody asks to go on with it."""
    return f"{path}: a run that was stopped left this; go on with --resume, or remove it to begin anew"


def of_another_run(path: object, what: str) -> str:
    """Said of unfinished work that cannot be gone on with. what: may differ."""
    way_out = "repeat the command that wrote it, or remove it to begin anew"
    return f"{path}: belongs to another run ({what} differ); {way_out}"


_VARIES = re.compile(r"\b[A-Z]*\d\w*")  # Q4_K, IQ2_XXS, 256


def folded(messages: Sequence[str]) -> list[str]:
    """Messages that say the same of several tensors (`NAME: what`) as the first of them and a count.

    Alike are those that differ in that name, in types and in numbers only.
    """
    groups: dict[str, list[str]] = {}
    for message in messages:
        name, separator, what = message.partition(": ")
        about_tensor = bool(separator) and not name.startswith("-")  # not about an option
        kind = _VARIES.sub("#", what.replace(name, "")) if about_tensor else message
        groups.setdefault(kind, []).append(message)
    return [
        f"{alike[0]} (and {len(alike) - 1} more like it)" if len(alike) > 1 else alike[0]
        for alike in groups.values()
    ]


def meant(word: str, known: Iterable[str]) -> str | None:
    """The known word that a typo most likely meant."""
    import difflib  # not for those who type well

    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None


def choices(word: str, known: Iterable[str]) -> str:
    """What to say behind an unknown word: the one that was meant, or all there are."""
    names = list(known)
    found = meant(word, names)
    return f"did you mean {found}? (known: {', '.join(names)})" if found else f"known: {', '.join(names)}"


# Importable package → the extra of pyproject.toml that brings it, with all else that its uses need.
EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "torch": "models",
        "transformers": "models",
        "accelerate": "models",
        "sentencepiece": "models",
        "google": "models",  # protobuf, which sentencepiece's files are read with
        "triton": "gpu",
        "pyarrow": "models",
        "matplotlib": "report",
        "xllamacpp": "speed",
        "lm_eval": "lm-eval",
    }
)


@contextmanager
def explained_imports() -> Iterator[None]:
    """A missing optional package, wherever it is imported inside, becomes a MissingPackageError; another is a bug."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingPackageError(
            f"this needs {package}, which is not installed: pip install 'quantmill[{EXTRAS[package]}]'"
        ) from error
