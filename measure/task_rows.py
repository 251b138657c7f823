"""A task, and one from an object of a JSONL file, under the names that the official data sets use.

HellaSwag, WinoGrande, ARC, OpenBookQA, CommonsenseQA, MMLU and TruthfulQA as their authors and Hugging Face
publish them, and the plain forms {"context", "endings", "label"}, {"question", "choices", "answer"}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantmill.measure.errors import MeasureError

Kind = Literal["hellaswag", "winogrande", "multiple-choice"]
KINDS: tuple[Kind, ...] = ("hellaswag", "winogrande", "multiple-choice")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One question. WinoGrande: stem and tail are the sentence around `_`; others have no tail.
    right: indices of the choices that count as correct."""

    stem: str
    choices: tuple[str, ...]
    right: frozenset[int]
    tail: str = ""


def task_of(kind: Kind, row: Any) -> Task:
    """Raises MeasureError saying which field is missing or wrong."""
    if not isinstance(row, Mapping):
        raise MeasureError("not a JSON object")
    readers: dict[Kind, Callable[[Row], Task]] = {
        "hellaswag": _hellaswag,
        "winogrande": _winogrande,
        "multiple-choice": _multiple_choice,
    }
    return readers[kind](row)


def _hellaswag(row: Row) -> Task:
    """Official rows (`ctx`) are put together and cleaned as the texts of llama.cpp's task file were:
    "activity: context", no [brackets] (lm-evaluation-harness: hellaswag)."""
    endings = _texts(row, "endings")
    if "context" in row:
        stem = _text(row, "context")
    else:
        activity = f"{_text(row, 'activity_label')}: " if "activity_label" in row else ""
        stem = _cleaned(activity + _text(row, "ctx", also="context"))
        endings = tuple(_cleaned(ending) for ending in endings)
    return _task(stem, endings, _index(row, "label", len(endings)))


def _cleaned(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Row) -> Task:
    stem, blank, tail = _text(row, "sentence").partition("_")
    if not blank:
        raise MeasureError("the sentence has no _ to fill in")
    choices = (_text(row, "option1"), _text(row, "option2"))
    answer = str(_field(row, "answer")).strip()
    if answer not in ("1", "2"):
        raise MeasureError(f"answer {answer[:40]!r} is neither 1 nor 2")
    return Task(stem, choices, frozenset([int(answer) - 1]), tail)


def _multiple_choice(row: Row) -> Task:
    targets = next((row[key] for key in ("mc1_targets", "mc2_targets") if key in row), None)
    if targets is not None:
        return _truthful(_text(row, "question"), targets)
    question, labels = row.get("question"), None
    if isinstance(question, Mapping):  # ARC and CommonsenseQA as their authors publish them
        stem, choices = _text(question, "stem"), _field(question, "choices")
    else:
        stem = _text(row, "question_stem" if "question_stem" in row else "question")
        choices = _field(row, "choices")
    if isinstance(choices, Mapping):
        texts, labels = _texts(choices, "text"), choices.get("label")
    elif isinstance(choices, Sequence) and choices and isinstance(choices[0], Mapping):
        texts, labels = tuple(_text(one, "text") for one in choices), [one.get("label") for one in choices]
    else:
        texts = _texts(row, "choices")
    key = "answerKey" if "answerKey" in row else "answer"
    return _task(stem, texts, _answer(row, key, texts, labels))


def _truthful(question: str, targets: Any) -> Task:
    """{"choices": […], "labels": [1, 0, …]}, or answer → 1 or 0 as in the authors' file."""
    if isinstance(targets, Mapping) and "choices" in targets:
        texts, labels = _texts(targets, "choices"), _field(targets, "labels")
    elif isinstance(targets, Mapping) and targets:
        texts, labels = tuple(targets), list(targets.values())
    else:
        raise MeasureError("mc1_targets has no choices")
    if not isinstance(labels, list) or len(labels) != len(texts) or set(labels) - {0, 1} or 1 not in labels:
        raise MeasureError(f"labels {str(labels)[:40]} do not say which of {len(texts)} choices are right")
    return _task(question, texts, *(i for i, label in enumerate(labels) if label == 1))


def _answer(row: Row, key: str, texts: Sequence[str], labels: Any) -> int:
    """The right choice: by its label where choices have labels; else by index from 0, letter or text."""
    answer = _field(row, key)
    if isinstance(labels, list):
        if len(labels) != len(texts):
            raise MeasureError(f"{len(labels)} labels for {len(texts)} choices")
        if labels.count(answer) == 1:
            return labels.index(answer)
        raise MeasureError(f"{key} {str(answer)[:40]!r} is none of the labels {', '.join(map(str, labels))}")
    if isinstance(answer, str) and not answer.strip().isdecimal():
        letter = answer.strip().upper()
        if len(letter) == 1 and "A" <= letter <= "Z" and ord(letter) - ord("A") < len(texts):
            return ord(letter) - ord("A")
        if list(texts).count(answer) == 1:
            return list(texts).index(answer)
    return _index(row, key, len(texts))


def _index(row: Row, key: str, n: int) -> int:
    value = _field(row, key)
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) >= n:
        raise MeasureError(f"{key} {text[:40]!r} names none of {n} choices")
    return int(text)


def _task(stem: str, texts: Sequence[str], *right: int) -> Task:
    if len(texts) < 2:
        raise MeasureError("a task needs at least two choices")
    if not stem or not all(texts):
        raise MeasureError("the question or a choice is empty")
    return Task(stem, tuple(texts), frozenset(right))


def _field(row: Row, key: str, also: str = "") -> Any:
    if key not in row:
        raise MeasureError(f"has no field {key}" + (f" or {also}" if also else ""))
    return row[key]


def _text(row: Row, key: str, also: str = "") -> str:
    value = _field(row, key, also)
    if not isinstance(value, str):
        raise MeasureError(f"{key} is not text")
    return value


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value = _field(row, key)
    if not isinstance(value, list) or not all(isinstance(one, str | int | float) for one in value):
        raise MeasureError(f"{key} is not a list of texts")
    return tuple(str(one) for one in value)
