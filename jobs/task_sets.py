"""Tasks by name: which file of which data set on the hub holds them, as llama.cpp reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from quantmill.errors import choices
from quantmill.jobs.errors import JobError
from quantmill.measure.task import Kind

_MULTIPLE_CHOICE = "ikawrakow/validation-datasets-for-llama.cpp"


@dataclass(frozen=True)
class TaskSet:
    """A file of tasks in a data set's repository. title: above its column in the card."""

    title: str
    repo: str
    file: str
    kind: Kind = "multiple-choice"


# HellaSwag stands there as multiple choice too: the same questions and endings as in llama.cpp's text file.
TASK_SETS = MappingProxyType(
    {
        "arc": TaskSet("ARC", _MULTIPLE_CHOICE, "arc-challenge-validation.bin"),
        "arc-easy": TaskSet("ARC-Easy", _MULTIPLE_CHOICE, "arc-easy-validation.bin"),
        "hellaswag": TaskSet("HellaSwag", _MULTIPLE_CHOICE, "hellaswag-validation.bin"),
        "mmlu": TaskSet("MMLU", _MULTIPLE_CHOICE, "mmlu-validation.bin"),
        "truthfulqa": TaskSet("Truthful QA", _MULTIPLE_CHOICE, "truthful-qa-validation.bin"),
        "winogrande": TaskSet(
            "WinoGrande",
            "ikawrakow/winogrande-eval-for-llama.cpp",
            "winogrande-debiased-eval.csv",
            "winogrande",
        ),
    }
)


def known_tasks(names: Sequence[str]) -> None:
    """Raises JobError for a name that is none of these."""
    for name in names:
        if name not in TASK_SETS:
            raise JobError(f"--tasks {name}: {choices(name, TASK_SETS)}")
