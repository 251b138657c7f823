"""What compensation costs on a GPU, by formula: `python -m bench.compensation_costs`. Nothing is measured.

Operations follow from the shapes and the text; the rates are those of calibrate.costs.H100, two thirds of the data
sheet's float32 without tensor cores, a launch takes 8 µs, as measured; the kernels that go through columns have not
met a GPU. Reading the model and the first compilation are not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from bench import tables
from quantmill.calibrate.costs import H100, Setting, Work, layer_of, memory_of, work_of
from quantmill.calibrate.solver import EFFORTS
from quantmill.imatrix.text import N_CTX
from quantmill.jobs.compensate_request import CHUNKS


@dataclass(frozen=True)
class Model:
    """shapes: of one layer's tensors, columns first; used: experts a token is routed to."""

    name: str
    n_layers: int
    hidden: int
    shapes: Mapping[str, tuple[int, ...]]
    used: int = 1


def _attention(hidden: int, queries: int, keys: int) -> dict[str, tuple[int, ...]]:
    rows = {"attn_q": (hidden, queries), "attn_k": (hidden, keys), "attn_v": (hidden, keys)}
    return {**rows, "attn_output": (queries, hidden)}


MODELS = (
    Model(
        "8B dense (Llama 3.1)",
        32,
        4096,
        _attention(4096, 4096, 1024)
        | {"ffn_gate": (4096, 14336), "ffn_up": (4096, 14336), "ffn_down": (14336, 4096)},
    ),
    Model(
        "30B-A3B (Qwen3 MoE)",
        48,
        2048,
        _attention(2048, 4096, 512)
        | {
            "ffn_gate_exps": (2048, 768, 128),
            "ffn_up_exps": (2048, 768, 128),
            "ffn_down_exps": (768, 2048, 128),
        },
        8,
    ),
)


@dataclass(frozen=True)
class Row:
    model: str
    effort: str
    n_tokens: int
    operations: float
    passes_s: float
    moments_s: float
    codes_s: float
    factors_s: float
    columns_s: float
    minutes: float
    matmuls: float
    memory: float


_COLUMNS = (
    tables.Column("model", "model"),
    tables.Column("effort", "effort"),
    tables.Column("tokens", "n_tokens", "{:d}"),
    tables.Column("T operations", "operations", "{:.0f}"),
    tables.Column("passes, s", "passes_s", "{:.0f}"),
    tables.Column("moments, s", "moments_s", "{:.0f}"),
    tables.Column("codes, s", "codes_s", "{:.0f}"),
    tables.Column("factors, s", "factors_s", "{:.0f}"),
    tables.Column("column by column, s", "columns_s", "{:.0f}"),
    tables.Column("minutes", "minutes", "{:.1f}"),
    tables.Column("matmuls, %", "matmuls", "{:.0f}"),
    tables.Column("GiB beside the model", "memory", "{:.1f}"),
)


def rows() -> list[Row]:
    found = []
    for model in MODELS:
        layer = layer_of(model.shapes, model.used)
        for name, effort in EFFORTS.items():
            setting = Setting(CHUNKS[name] * N_CTX, N_CTX, model.hidden, "cuda")
            two_streams = name != "fast"
            one = work_of(layer, setting, effort, two_streams)
            work = Work(*(value * model.n_layers for value in one.fields()))
            seconds = H100.seconds(work)
            matmuls = H100.matmuls_s(work)
            found.append(
                Row(
                    model=model.name,
                    effort=name,
                    n_tokens=setting.n_tokens,
                    operations=work.operations / 1e12,
                    passes_s=work.passes / H100.single,
                    moments_s=work.sums / H100.single,
                    codes_s=work.codes / H100.single,
                    factors_s=work.factors / H100.double,
                    columns_s=seconds - matmuls,
                    minutes=seconds / 60,
                    matmuls=100 * matmuls / seconds,
                    memory=memory_of(layer, setting, two_streams) / 2**30,
                )
            )
    return found


if __name__ == "__main__":
    print(tables.markdown(_COLUMNS, rows()))
    sys.exit(0)
