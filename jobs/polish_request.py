"""What a polish is asked for, what it will do, what came of it, and who watches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantmill.calibrate.rates import Rates, default_rates
from quantmill.imatrix.text import Text
from quantmill.jobs.errors import JobError
from quantmill.measure.divergence import Divergence, PairedTest


@dataclass(frozen=True)
class Job:
    """quant: any quantized GGUF. base: the original, a GGUF or a Hugging Face directory. calibration: texts, plain or
    .jsonl conversations.

    output: None for QUANT-polished.gguf. n_chunks of 512 tokens behind the first skip_chunks, n_epochs over them.
    rate: highest relative change of scales a step, None for the measured one of each type. only: "scales" or "norms"
    (all F32 vectors), None for both and, unless keep_codes, codes. dtype: of products, None for bfloat16 where the type
    is coarse enough. stream: blocks and what is trained of them stay in main memory, and visit the GPU that makes the
    products. resume: go on with a run that was stopped.
    """

    quant: Path
    base: Path
    calibration: tuple[Text, ...]
    output: Path | None = None
    n_chunks: int | None = None
    skip_chunks: int = 0
    n_epochs: int = 1
    rate: float | None = None
    only: str | None = None
    keep_codes: bool = False
    device: str = "auto"
    dtype: str | None = None
    stream: bool = False
    threads: int | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if not self.calibration:
            raise JobError("polish needs a text to learn and to judge on (--calibration FILE)")
        numbers = {"--chunks": self.n_chunks, "--epochs": self.n_epochs, "--threads": self.threads}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise JobError(f"{name} {value}: must be at least 1")
        if self.rate is not None and not 0 < self.rate < 1:
            raise JobError(f"--lr {self.rate}: a relative change a step lies between 0 and 1, such as 0.001")
        if self.only not in (None, "scales", "norms"):
            raise JobError(f"--only {self.only}: choose scales or norms")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise JobError(f"--dtype {self.dtype}: choose float32, bfloat16 or float16")

    @property
    def text_files(self) -> tuple[Path, ...]:
        return tuple(text.path for text in self.calibration)

    @property
    def rates(self) -> Rates:
        """As asked for; `polish_facts.rates_of` knows whether the model is too large for its codes to move."""
        codes = self.only is None and not self.keep_codes
        return default_rates(self.only != "norms", self.only != "scales", self.rate, codes)


@dataclass(frozen=True)
class Plan:
    """What will be done, known before the work.

    n_trained: chunks of n_ctx tokens. n_moving: numbers that are trained, n_codes: codes that may move beside them.
    memory_bytes, device_bytes: estimated peaks, of main memory and of a GPU's; kept_bytes: on the disk beside the
    output until it is there.
    """

    output: Path
    n_trained: int
    n_ctx: int
    n_held_back: int
    n_epochs: int
    n_moving: int
    n_codes: int
    dtype: str
    memory_bytes: int
    device_bytes: int
    kept_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """before, after: on the held-back chunks. paths: what was written, nothing where it did not help."""

    plan: Plan
    before: Divergence
    after: Divergence
    test: PairedTest
    losses: tuple[float, ...]
    n_steps: int
    paths: tuple[Path, ...]

    @property
    def helped(self) -> bool:
        return bool(self.paths)


def default_output(quant: Path) -> Path:
    """`model-Q4_0.gguf` → `model-Q4_0-polished.gguf`; of a split model the name without the numbers."""
    name = quant.name.removesuffix(".gguf")
    head, _, tail = name.rpartition("-of-")
    if len(tail) == 5 and tail.isdecimal() and head[-6:-5] == "-":
        return quant.with_name(f"{head[:-6]}-polished")
    return quant.with_name(f"{name}-polished.gguf")
