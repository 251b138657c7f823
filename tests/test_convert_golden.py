"""Every family's tiny model converts to what llama.cpp's own converter made of it (data/convert/make.py)."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from quantmill.gguf_io.convert import SUPPORTED
from quantmill.jobs.convert import Conversion, plan_conversion
from quantmill.qkernels import quantize
from tests.support.convert_models import DATA, MODELS, opened, write_model, written_once

GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return written_once(write_model, tmp_path_factory.mktemp)


@pytest.mark.parametrize("name", GOLDEN)
def test_metadata_is_llama_cpps(name, models):
    ours = opened(name, models(name)).metadata
    found = {}
    for key, value in ours.items():
        kinds = [value.type.name] + ([value.element_type.name] if value.element_type is not None else [])
        plain = list(value.value) if value.element_type is not None else value.value
        found[key] = [
            ":".join(kinds),
            plain if len(str(plain)) < 200 else _digest(json.dumps(plain).encode()),
        ]
    expected = {
        key: [kinds, _as_float32(kinds, value)] for key, (kinds, value) in GOLDEN[name]["metadata"].items()
    }
    found = {key: [kinds, _as_float32(kinds, value)] for key, (kinds, value) in found.items()}
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize("name", GOLDEN)
def test_tensors_are_llama_cpps(name, models):
    source = opened(name, models(name))
    expected = GOLDEN[name]["tensors"]
    assert [spec.name for spec in source.specs()] == list(expected)
    for spec in source.specs():
        kind, shape, digest = expected[spec.name]
        # llama.cpp's converter drops no trailing 1s from a shape; ggml takes them as absent.
        assert list(spec.shape) == _without_trailing_ones(shape), spec.name
        if spec.type == kind:
            assert _digest(source.read(spec.name).tobytes()) == digest, spec.name
        elif kind == "Q8_0":  # DeepSeek V4's FP8
            values = source.read(spec.name).view(np.float32)
            assert _digest(quantize(values, kind).tobytes()) == digest, spec.name
        else:
            assert (spec.type, kind) in (("F32", "F16"), ("F32", "BF16")), spec.name


LATER = {"--mtp": "only", "--no-mtp": "without"}
# Routers are F32; llama.cpp's converter does not see that this is one, whose layer has another number there.
ROUTER = {"nemotron-3-nextn": "blk.5.ffn_gate_inp.weight"}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_conversion_has_llama_cpps_types(name, models, tmp_path):
    later = next((LATER[word] for word in MODELS[name].options if word in LATER), "with")
    plan = plan_conversion(Conversion(models(name), tmp_path / "out.gguf", later=later))
    expected = {tensor: kind for tensor, (kind, _, _) in GOLDEN[name]["tensors"].items()}
    if name in ROUTER:
        assert expected[ROUTER[name]] == "BF16"
        expected[ROUTER[name]] = "F32"
    assert {entry.name: entry.type for entry in plan.entries} == expected


def test_every_supported_architecture_has_a_model():
    covered = {model.architecture for model in MODELS.values()}
    aliases = {
        "LLaMAForCausalLM",
        "Gemma3ForConditionalGeneration",
        "Ernie4_5_ForCausalLM",
        "ExaoneMoEForCausalLM",
        "LFM2ForCausalLM",
        "BailingHybridForCausalLM",
        "MiniMaxM3SparseForCausalLM",
        "MiniMaxM3VLForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen4ExpForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "Gemma3nForConditionalGeneration",
        "Gemma4ForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "Step3p7ForConditionalGeneration",
    }
    assert set(SUPPORTED) == covered | aliases


def test_every_model_has_a_golden_digest():
    assert list(GOLDEN) == list(MODELS)


def _as_float32(kinds, value):
    """Metadata floats are stored as float32; gguf's reader gives them back as such."""
    if kinds == "FLOAT32":
        return float(np.float32(value))
    return (
        [float(np.float32(item)) for item in value]
        if kinds == "ARRAY:FLOAT32" and isinstance(value, list)
        else value
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _without_trailing_ones(shape):
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
