"""Rows of files of tasks: those of the official data sets, and those that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.measure.task_files import Kind, Task, read_tasks

# Rows as the data sets' authors and Hugging Face publish them, and the task each is.
OFFICIAL: list[tuple[Kind, dict[str, Any], Task]] = [
    (
        "hellaswag",
        {
            "ind": 24,
            "activity_label": "Roof shingle removal",
            "ctx_a": "A man is sitting on a roof.",
            "ctx_b": "he",
            "ctx": "A man is sitting on a roof. he",
            "endings": ["is using wrap.", "rips  level tiles off.", "[step] waits.", "starts pulling."],
            "split": "val",
            "label": "3",
        },
        Task(
            "Roof shingle removal: A man is sitting on a roof. he",
            ("is using wrap.", "rips level tiles off.", " waits.", "starts pulling."),
            frozenset([3]),
        ),
    ),
    (
        "hellaswag",
        {"ctx": "[header] How to nap [title] Lie down. ", "endings": ["a", "b"], "label": 0},
        Task(" How to nap. Lie down.", ("a", "b"), frozenset([0])),
    ),
    (
        "winogrande",
        {"qID": "3FCH-1", "sentence": "A _ b_.", "option1": "x", "option2": "y", "answer": "2"},
        Task("A ", ("x", "y"), frozenset([1]), " b_."),
    ),
    (  # ARC and OpenBookQA at Hugging Face
        "multiple-choice",
        {
            "id": "Mercury_7220990",
            "question": "Which?",
            "choices": {"text": ["dry", "wet", "hot"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        },
        Task("Which?", ("dry", "wet", "hot"), frozenset([1])),
    ),
    (
        "multiple-choice",
        {
            "question_stem": "The sun",
            "choices": {"text": ["dry", "wet"], "label": ["1", "2"]},
            "answerKey": "1",
        },
        Task("The sun", ("dry", "wet"), frozenset([0])),
    ),
    (  # ARC's own files
        "multiple-choice",
        {
            "question": {
                "stem": "Which?",
                "choices": [{"text": "p", "label": "A"}, {"text": "q", "label": "B"}],
            },
            "answerKey": "B",
        },
        Task("Which?", ("p", "q"), frozenset([1])),
    ),
    (  # MMLU
        "multiple-choice",
        {"question": "2 + 2?", "subject": "algebra", "choices": ["0", "4", "2", "6"], "answer": 1},
        Task("2 + 2?", ("0", "4", "2", "6"), frozenset([1])),
    ),
    (
        "multiple-choice",
        {"question": "2 + 2?", "choices": ["0", "2", "4", "6"], "answer": "C"},
        Task("2 + 2?", ("0", "2", "4", "6"), frozenset([2])),
    ),
    (  # TruthfulQA at Hugging Face and its authors' file
        "multiple-choice",
        {
            "question": "Why?",
            "mc1_targets": {"choices": ["so", "no"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["so", "yes", "no"], "labels": [1, 1, 0]},
        },
        Task("Why?", ("so", "no"), frozenset([0])),
    ),
    (
        "multiple-choice",
        {"question": "Why?", "mc1_targets": {"so": 0, "no": 1}},
        Task("Why?", ("so", "no"), frozenset([1])),
    ),
    (
        "multiple-choice",
        {"question": "Why?", "mc2_targets": {"choices": ["so", "yes", "no"], "labels": [1, 1, 0]}},
        Task("Why?", ("so", "yes", "no"), frozenset([0, 1])),
    ),
]


@pytest.mark.parametrize(("kind", "row", "task"), OFFICIAL)
def test_rows_of_the_official_data_sets(kind: Kind, row: dict[str, Any], task: Task, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n\r\n")
    assert read_tasks(path, kind) == [task]


def test_only_line_feeds_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"context": "a\u2028b\x85c\u2029", "endings": ["x\u2028", "y"], "label": 1}
    path.write_text((json.dumps(row, ensure_ascii=False) + "\n") * 2, encoding="utf-8")
    assert read_tasks(path, "hellaswag") == 2 * [Task(row["context"], ("x\u2028", "y"), frozenset([1]))]  # type: ignore[arg-type]


WRONG: list[tuple[Kind, str, str]] = [
    ("hellaswag", "{", "is not JSON"),
    ("hellaswag", "[1]", "not a JSON object"),
    ("hellaswag", '{"endings": ["a", "b"], "label": 0}', "has no field ctx or context"),
    ("hellaswag", '{"ctx": "a", "endings": "ab", "label": 0}', "endings is not a list of texts"),
    ("hellaswag", '{"ctx": "a", "endings": ["a", "b"], "label": ""}', "label '' names none of 2 choices"),
    ("hellaswag", '{"ctx": "a", "endings": ["a", ""], "label": 0}', "the question or a choice is empty"),
    ("winogrande", '{"sentence": "a", "option1": "b", "option2": "c", "answer": 1}', "has no _ to fill in"),
    ("winogrande", '{"sentence": "_", "option1": "b", "option2": "c", "answer": ""}', "answer '' is neither"),
    ("multiple-choice", '{"question": 3, "choices": ["a", "b"], "answer": 0}', "question is not text"),
    (
        "multiple-choice",
        '{"question": "q", "choices": ["a", "b"], "answer": 2}',
        "answer '2' names none of 2",
    ),
    (
        "multiple-choice",
        '{"question": "q", "choices": ["a", "b"], "answer": "D"}',
        "answer 'D' names none of 2",
    ),
    ("multiple-choice", '{"question": "q", "choices": ["a"], "answer": 0}', "at least two choices"),
    (
        "multiple-choice",
        '{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}',
        "answerKey 'C' is none of the labels A, B",
    ),
    (
        "multiple-choice",
        '{"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": [0, 0]}}',
        "do not say which of 2 choices are right",
    ),
]


@pytest.mark.parametrize(("kind", "line", "message"), WRONG)
def test_a_row_that_is_no_task_is_named_in_one_line(
    kind: Kind, line: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(QuantmillError, match=message) as error:
        read_tasks(path, kind)
    assert f"{path}: line 2" in str(error.value)
    assert "\n" not in str(error.value)
