"""Types, order and sizes of real models' shapes under every file type, as llama-quantize plans them.

The answers in tests/data/presets are dry runs of llama-quantize 0c1e570 on header-only files: per file type with and
without importance the type of the matrices, the tensors that differ from it, and the sizes in MiB it prints.
"""

import gzip
import json
from pathlib import Path

import pytest

from quantmill.gguf_io import TensorSpec
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.qkernels.types import TYPES
from quantmill.recipe import FILE_TYPES, ImportanceIndex, Recipe, RecipeError, build_plan, get_file_type
from quantmill.recipe.presets import ALIASES, find_file_type

DATA = Path(__file__).parent / "data" / "presets"
MODELS = sorted(path.name.removesuffix(".json.gz") for path in DATA.glob("*.json.gz"))


def golden(model):
    return json.loads(gzip.decompress((DATA / f"{model}.json.gz").read_bytes()))


def metadata_of(data):
    u32 = GGUFValueType.UINT32
    renamed = {"head_count": "attention.head_count", "head_count_kv": "attention.head_count_kv"}
    pairs = [("general.architecture", MetaValue(GGUFValueType.STRING, data["arch"]))]
    pairs += [
        (f"{data['arch']}.{renamed.get(key, key)}", MetaValue(u32, value))
        for key, value in data["kv"].items()
    ]
    return Metadata(pairs)


def specs_of(data):
    """Matrices F16; routers and vectors F32."""
    return tuple(
        TensorSpec(
            name, tuple(shape), "F32" if len(shape) == 1 or "ffn_gate_inp" in name else "F16", 0, 32 * number
        )
        for number, (name, shape) in enumerate(data["tensors"])
    )


def importance_for(specs):
    values = {spec.name: spec.shape[0] * (spec.shape[2] if len(spec.shape) > 2 else 1) for spec in specs}
    return ImportanceIndex("imatrix.gguf", values)


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_has_llama_quantizes_type(model):
    data = golden(model)
    metadata, specs = metadata_of(data), specs_of(data)
    assert len(data["presets"]) == 68
    for label, expected in data["presets"].items():
        file_type, _, weighted = label.partition("+")
        importance = importance_for(specs) if weighted else None
        if expected.get("refused"):
            with pytest.raises(RecipeError, match="has no substitute"):
                build_plan(specs, metadata, Recipe(file_type), importance)
            continue
        plan = build_plan(specs, metadata, Recipe(file_type), importance)
        types = {entry.name: entry.type for entry in plan.entries}
        wanted = {
            spec.name: expected["others"].get(
                spec.name, "F32" if len(spec.shape) == 1 else expected["default"]
            )
            for spec in specs
        }
        assert types == wanted, label
        sizes = [
            sum(entry.source_bytes for entry in plan.entries),
            sum(entry.n_bytes for entry in plan.entries),
        ]
        assert [f"{size / 2**20:.2f}" for size in sizes] == expected["size_mib"], label


@pytest.mark.parametrize("model", MODELS)
def test_tensors_are_written_layer_by_layer(model):
    data = golden(model)
    names = [entry.name for entry in build_plan(specs_of(data), metadata_of(data), Recipe("Q8_0")).entries]
    outside = [name for name in names if not name.startswith("blk.")]
    assert names[: len(outside)] == sorted(outside)
    inside = names[len(outside) :]
    assert inside == sorted(inside, key=lambda name: (int(name.split(".")[1]), name))


def test_all_golden_models_are_there():
    assert MODELS == ["gemma-3-4b", "llama-3.1-8b", "qwen3-30b-a3b", "smollm2-135m"]


def test_table_of_file_types_is_sound():
    assert len(FILE_TYPES) == 35
    assert len({row.id for row in FILE_TYPES.values()}) == 35
    assert all(row.base in TYPES for row in FILE_TYPES.values())
    assert set(ALIASES.values()) <= set(FILE_TYPES)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("q4_k_m", "Q4_K_M"),
        ("Q4_k", "Q4_K_M"),
        ("15", "Q4_K_M"),
        ("copy", "COPY"),
        ("0", "F32"),
        ("mxfp4_moe", "MXFP4_MOE"),
    ],
)
def test_file_types_by_name_alias_and_number(given, name):
    assert find_file_type(given) == name


@pytest.mark.parametrize("given", ["7B.gguf", "39", "4", "Q4", "", "-1", "²"])
def test_what_is_no_file_type(given):
    assert find_file_type(given) is None
    with pytest.raises(RecipeError, match="known: "):
        get_file_type(given)
