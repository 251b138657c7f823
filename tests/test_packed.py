"""Packed checkpoints against llama.cpp's converter (data/packed/make.py) and against the libraries that define them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantmill.cli import main
from quantmill.gguf_io.source import GGUFSource
from quantmill.jobs import convert, quantize
from quantmill.qkernels import to_float32
from quantmill.recipe import Recipe
from tests.support.packed_models import PACKED
from tests.test_convert_golden import _as_float32, _digest, _without_trailing_ones

GOLDEN = json.loads((Path(__file__).parent / "data" / "packed" / "golden.json").read_text(encoding="utf-8"))
# What is stored as a GGUF type without loss: its blocks may be kept.
EXACT = {
    "int4-g32": "Q4_0",
    "gptq-4-symmetric": "Q4_0",
    "int3-rows": "Q4_0",
    "int8-g64": "Q8_0",
    "int-channel": "Q8_0",
}


def test_every_form_that_llama_cpp_reads_has_its_golden_digests():
    assert list(GOLDEN) == [name for name, model in PACKED.items() if model.options is not None]


@pytest.mark.parametrize("name", GOLDEN)
def test_metadata_is_llama_cpps(name, opened):
    ours = opened(name).metadata
    found = {}
    for key, value in ours.items():
        kinds = [value.type.name] + ([value.element_type.name] if value.element_type is not None else [])
        plain = list(value.value) if value.element_type is not None else value.value
        shown = plain if len(str(plain)) < 200 else _digest(json.dumps(plain).encode())
        found[key] = [":".join(kinds), _as_float32(":".join(kinds), shown)]
    expected = {
        key: [kinds, _as_float32(kinds, value)] for key, (kinds, value) in GOLDEN[name]["metadata"].items()
    }
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "fp8-as-q8"])
def test_tensors_are_llama_cpps(name, opened):
    """Names, order, shapes, blocks; what is not kept in blocks, as float32."""
    source = opened(name)
    expected = GOLDEN[name]["tensors"]
    assert [spec.name for spec in source.specs()] == list(expected)
    for spec in source.specs():
        kind, shape, digest = expected[spec.name]
        assert list(spec.shape) == _without_trailing_ones(shape), spec.name
        rows = source.read(spec.name)
        rows = rows if kind == spec.type else to_float32(rows, spec.type)
        assert kind in (spec.type, "F32"), spec.name
        assert _digest(rows.tobytes()) == digest, spec.name


def test_fp8_as_q8(packed, tmp_path):
    """The command's file has llama.cpp's tensors."""
    out = tmp_path / "out.gguf"
    assert main(["convert", str(packed("fp8-as-q8")), str(out), "--type", "bf16", "--fp8-as-q8"]) == 0
    expected = GOLDEN["fp8-as-q8"]["tensors"]
    with GGUFSource(out) as file:
        kinds = {spec.name: spec.type for spec in file.specs()}
        assert kinds == {name: kind for name, (kind, _, _) in expected.items()}
        assert {"Q8_0", "BF16"} < set(kinds.values())
        for name, (_, _, digest) in expected.items():
            assert _digest(file.read(name).tobytes()) == digest, name


@pytest.mark.parametrize("name", PACKED)
def test_blocks_decode_to_the_values(name, opened):
    """What the search gets, blocks decoded by a lane program, is bit for bit what `read` gives, slab by slab too."""
    source = opened(name)
    types = set()
    for spec in source.specs():
        rows, type = source.fetch(spec.name)
        types.add(type)
        values = to_float32(source.read(spec.name), spec.type)
        assert np.array_equal(to_float32(rows, type).view(np.uint32), values.view(np.uint32)), spec.name
        first = spec.n_rows // 3
        part, part_type = source.fetch(spec.name, first, min(5, spec.n_rows - first))
        assert part_type == type
        assert part.tobytes() == rows[first : first + 5].tobytes(), spec.name
    by_name = {"reordered": {"BF16", "F32"}}
    wanted = next((kinds for text, kinds in by_name.items() if text in name), None)
    assert (
        types == wanted if wanted else types & {"FP8_E4M3", "INT4", "INT8", "MXFP4", "NVFP4", "Q4_0", "Q8_0"}
    )


@pytest.mark.parametrize("name", EXACT)
def test_what_a_type_of_ggml_holds_exactly_is_kept(name, opened, packed, tmp_path):
    """Quantizing to that type copies the codes and scales: the values are those of the checkpoint, and it is said."""
    notes = _Notes()
    out = tmp_path / "out.gguf"
    source = opened(name)
    result = quantize.run(quantize.Job(str(packed(name)), out, Recipe(EXACT[name])), notes)
    kept = [spec for spec in source.specs() if spec.original]
    assert len(kept) == 14
    assert {spec.type for spec in kept} == {EXACT[name]}
    assert f"14 tensors are {EXACT[name]} in the checkpoint and kept exactly" in notes.lines
    assert not [entry for entry in result.plan.entries if entry.original and entry.converted]
    with GGUFSource(out) as file:
        for spec in kept:
            exact = _values(source, spec.name)
            assert np.array_equal(to_float32(file.read(spec.name), spec.type), exact), spec.name


def test_mxfp4_stays_mxfp4(opened, packed, tmp_path):
    out = tmp_path / "out.gguf"
    quantize.run(quantize.Job(str(packed("mxfp4-pack")), out, Recipe("MXFP4_MOE")))
    source = opened("mxfp4-pack")
    with GGUFSource(out) as file:
        experts = [spec for spec in file.specs() if "_exps" in spec.name]
        assert experts
        assert {spec.type for spec in experts} == {"MXFP4"}
        for spec in experts:
            assert file.read(spec.name).tobytes() == source.read(spec.name).tobytes()


class _Notes:
    def __init__(self):
        self.lines = []

    def note(self, line):
        self.lines.append(line)

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _values(source, name):
    readers = source._sources(name)
    view = source._table.views[name]
    rows = [reader.values(slice(None), slice(None)) for reader in readers]
    return np.concatenate([part if view.rows is None else part[view.rows] for part in rows])


ONE_PASS = [
    "fp8-cut-blocks",
    "float-tensor",
    "int4-g128-zeros",
    "gptq-4-reordered",
    "gptq-8",
    "bitnet",
    "modelopt-mixed",
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ONE_PASS else pytest.mark.slow) for name in PACKED]
)
def test_one_pass_is_the_bytes_of_two(name, opened, packed, tmp_path):
    """Straight from the packed directory, as through a GGUF in float32; what is kept exactly has its values instead."""
    exact = {spec.name: spec.type for spec in opened(name).specs() if spec.original}
    convert.run(convert.Conversion(packed(name), tmp_path / "f32.gguf", "f32"))
    for file_type in ("Q4_K_M", "Q8_0"):
        recipe = Recipe(file_type, allow_requantize=True)
        for source, out in ((packed(name), "one.gguf"), (tmp_path / "f32.gguf", "two.gguf")):
            quantize.run(quantize.Job(str(source), tmp_path / out, recipe, force=True))
        one, two = (GGUFSource(tmp_path / out) for out in ("one.gguf", "two.gguf"))
        assert [spec.name for spec in one.specs()] == [spec.name for spec in two.specs()]
        for spec in one.specs():
            if exact.get(spec.name) == spec.type:
                found = to_float32(one.read(spec.name), spec.type)
                assert np.array_equal(found, _values(opened(name), spec.name)), spec.name
            else:
                assert one.read(spec.name).tobytes() == two.read(spec.name).tobytes(), spec.name


@pytest.mark.parametrize("name", ["int4-g32", "mxfp4-pack", "nvfp4-pack"])
def test_packed_weights_may_be_quantized_without_insisting(name, packed, tmp_path):
    """They are the original: there is nothing better to start from. The GGUF made of it says so no more."""
    plan = quantize.plan_job(quantize.Job(str(packed(name)), tmp_path / "out.gguf", Recipe("Q3_K_S")))
    assert not plan.problems
    assert {entry.type for entry in plan.entries if entry.original} == {"Q3_K"}
