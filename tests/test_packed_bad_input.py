"""Packed checkpoints that are incomplete, contradict their configuration or hold hostile scales: one line each."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from quantmill.cli import main
from quantmill.errors import QuantmillError
from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.errors import GGUFError
from tests.support.convert_models import edit, write_shards
from tests.support.packed_models import PACKED, packed_tensors, write_packed

# Of each form the parts without which a weight means nothing.
PARTS = {
    "fp8-mistral": ["qscale_weight"],
    "modelopt-fp8": ["weight_scale"],
    "mxfp4-pack": ["weight_scale"],
    "nvfp4-modelopt": ["weight_scale"],
    "nvfp4-pack": ["weight_scale", "weight_global_scale"],
    "int4-g32": ["weight_scale", "weight_shape"],
    "gptq-4": ["scales", "qzeros"],
    "bitnet": ["weight_scale"],
}
CASES = [(name, part) for name, parts in PARTS.items() for part in parts]


def refused(directory, message):
    with pytest.raises(GGUFError, match=message) as error:
        open_checkpoint(directory)
    assert "\n" not in str(error.value)


def rewritten(name, directory, change):
    """The model `name` with changed tensors."""
    write_packed(name, directory)
    found = packed_tensors(name)
    change(found)
    write_shards(directory, found)
    return directory


def of_part(found, part):
    return next(key for key in found if key.endswith(f".{part}"))


@pytest.mark.parametrize(("name", "part"), CASES)
def test_a_part_is_missing(name, part, tmp_path):
    key = of_part(packed_tensors(name), part)
    rewritten(name, tmp_path, lambda found: found.pop(key))
    refused(tmp_path, f"has no .*{re.escape(key)}.*; the checkpoint is incomplete")


@pytest.mark.parametrize(("name", "part"), [case for case in CASES if case[1] != "weight_shape"])
@pytest.mark.parametrize("kind", ["another shape", "another type"])
def test_a_part_of_another_kind(name, part, kind, tmp_path):
    """Refused in words that name the part."""
    key = of_part(packed_tensors(name), part)
    dtype = packed_tensors(name)[key][0]
    numpy_type = packed_tensors(name)[key][1].dtype
    odd = (dtype, np.ones((3, 5), numpy_type))
    if kind == "another type":
        odd = ("I64", np.ones(packed_tensors(name)[key][1].shape, np.int64))
    rewritten(name, tmp_path, lambda found: found.update({key: odd}))
    refused(tmp_path, re.escape(key))


@pytest.mark.parametrize("stated", [[], [256], [-1, 256], [256, 2**40], [2, 128, 256], [128, 100]])
def test_stated_shapes_that_are_none(stated, tmp_path):
    key = of_part(packed_tensors("int4-g32"), "weight_shape")
    shape = ("I64", np.array(stated, np.int64))
    rewritten("int4-g32", tmp_path, lambda found: found.update({key: shape}))
    refused(tmp_path, re.escape(key))


@pytest.mark.parametrize("shape", [(), (64,), (0, 64)])
@pytest.mark.parametrize(
    "name", ["fp8-tensor", "mxfp4-pack", "nvfp4-modelopt", "int4-g32", "gptq-4", "bitnet"]
)
def test_codes_that_are_no_matrix(name, shape, tmp_path):
    stored = packed_tensors(name)
    ends = (".down_proj.weight", ".weight_packed", ".qweight")
    key = next(key for key in stored if key.endswith(ends) and stored[key][0] != "BF16")
    odd = (stored[key][0], np.zeros(shape, stored[key][1].dtype))
    rewritten(name, tmp_path, lambda found: found.update({key: odd}))
    refused(tmp_path, f"{re.escape(key)} .*is no matrix")


def test_columns_of_groups_that_are_not_there(tmp_path):
    key = of_part(packed_tensors("gptq-4-reordered"), "g_idx")
    for index in (np.full(512, -1), np.full(512, 99), np.zeros(3)):
        odd = ("I32", index.astype(np.int32))
        rewritten("gptq-4-reordered", tmp_path, lambda found, odd=odd: found.update({key: odd}))
        refused(tmp_path, f"{re.escape(key)} must name one of")


CONTRADICTIONS = {
    "8 bits": ("int4-g32", {"num_bits": 8}, "codes of 8 bits, which config.json says"),
    "groups of 64": ("int4-g32", {"group_size": 64}, r"does not fit .* a scale for each block of \[1, 64\]"),
    "a scale a row": ("int8-g64", {"strategy": "channel"}, "does not fit .* a scale for each row"),
    "blocks": ("int-channel", {"strategy": "block", "block_structure": [64, 64]}, "does not fit"),
    "blocks of a word": (
        "float-blocks",
        {"block_structure": "half"},
        r"block size 'half' is not \[rows, columns\]",
    ),
    "an unknown strategy": (
        "int4-g32",
        {"strategy": "diagonal"},
        r"\(pack-quantized, 4 bits\), which is not supported",
    ),
    "four-bit floats": (
        "float-blocks",
        {"num_bits": 4},
        r"\(float-quantized, 4 bits\), which is not supported",
    ),
    "bits of a word": ("int4-g32", {"num_bits": "4"}, "which is not supported"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_configuration_that_contradicts_the_tensors(case, tmp_path):
    name, changes, message = CONTRADICTIONS[case]
    write_packed(name, tmp_path)
    settings = json.loads(json.dumps(PACKED[name].settings))
    settings["config_groups"]["group_0"]["weights"] |= changes
    edit(tmp_path / "config.json", quantization_config=settings)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gptq-4", {"bits": 8}, "is not GPTQ with 8 bits, which config.json says"),
        ("fp8-cut-blocks", {"weight_block_size": [64, 64]}, r"a scale for each block of \[64, 64\]"),
        ("fp8-cut-blocks", {"weight_block_size": None}, "a scale for each row"),
        ("modelopt-fp8", {"quant_algo": "W4A8_AWQ"}, r"modelopt \(W4A8_AWQ\), which is not supported"),
        ("int4-g32", {"quant_method": "gptq"}, "quantized by gptq"),
        ("gptq-4", {"quant_method": "awq"}, r"quantized by awq \(4 bits\), which is not supported"),
        ("bitnet", {"quant_method": "fp8"}, r"down_proj.weight \(MXFP4\) has no"),
    ],
)
def test_another_method_or_setting(name, changes, message, tmp_path):
    write_packed(name, tmp_path)
    edit(tmp_path / "config.json", quantization_config={**PACKED[name].settings, **changes})
    refused(tmp_path, message)


@pytest.mark.parametrize("name", ["fp8-tensor", "nvfp4-modelopt", "int4-g32", "gptq-4", "fp8-mistral"])
def test_no_word_of_it_in_the_configuration(name, tmp_path):
    write_packed(name, tmp_path)
    edit(tmp_path / "config.json", quantization_config=None)
    refused(tmp_path, "is a part of a quantized weight, but config.json has no quantization_config")


def test_weights_that_are_not_as_the_configuration_says(tmp_path):
    """A model whose weights somebody has dequantized, its configuration forgotten: read, with a warning."""
    from tests.support.convert_models import write_model

    edit(write_model("llama", tmp_path) / "config.json", quantization_config=PACKED["gptq-4"].settings)
    source = open_checkpoint(tmp_path)
    assert "quantized by gptq, but none is stored so; they are read as they are" in " ".join(source.warnings)


def test_a_shard_is_missing(tmp_path):
    write_packed("int4-g32", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_shards(tmp_path, packed_tensors("int4-g32"), 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, "names shards that are not there: model-00002-of-00003.safetensors")


NAN16, INF16 = 0x7FC0, 0x7F80  # of bfloat16
HOSTILE = {
    "fp8 NaN code": ("fp8-tensor", "o_proj.weight", 0x7F),
    "fp8 infinity": ("fp8-tensor", "weight_scale_inv", np.float32(np.inf)),
    "fp8 NaN": ("fp8-cut-blocks", "weight_scale_inv", np.float32(np.nan)),
    "fp8 power that is NaN": ("fp8-blocks-of-powers", "weight_scale_inv", 255),
    "fp8 beyond float32": ("fp8-tensor", "weight_scale_inv", np.float32(3e38)),
    "mxfp4 NaN": ("mxfp4-pack", "weight_scale", 255),
    "nvfp4 NaN": ("nvfp4-modelopt", "weight_scale", 127),
    "nvfp4 negative": ("nvfp4-modelopt", "weight_scale", 200),
    "nvfp4 factor": ("nvfp4-modelopt", "weight_scale_2", np.float32(np.nan)),
    "nvfp4 divisor": ("nvfp4-pack", "weight_global_scale", np.float32(0)),
    "int4 NaN": ("int4-g32", "weight_scale", NAN16),
    "int4 infinity": ("int4-g128-zeros", "weight_scale", INF16),
    "int8 NaN": ("int-channel", "weight_scale", NAN16),
    "gptq infinity": ("gptq-4", "scales", np.float16(np.inf)),
    "gptq reordered NaN": ("gptq-4-reordered", "scales", np.float16(np.nan)),
    "bitnet divisor": ("bitnet", "weight_scale", 0),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_scales(case, tmp_path, capsys):
    """Whatever is made of it: the tensor is named in one line, and no file is left."""
    name, part, value = HOSTILE[case]
    key = next(key for key in packed_tensors(name) if key.endswith(part))

    def change(found):
        dtype, values = found[key]
        spoiled = values.copy()
        spoiled.reshape(-1)[-1:] = value
        found[key] = (dtype, spoiled)

    directory = rewritten(name, tmp_path / "model", change)
    gguf_name = re.compile(r"blk\.0\.\w+\.(weight|scale)|model\.layers\.0\.\S+")
    for command in (["convert", "--type", "f32"], ["quantize", "--file-type", "Q4_K_M"]):
        words = [command[0], str(directory), str(tmp_path / "out.gguf")]
        words += command[1:] if command[0] == "convert" else [command[2]]
        assert main(words) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: "), error
        assert gguf_name.search(error), error
        assert not list(tmp_path.glob("out*"))


def test_errors_are_quantmills():
    assert issubclass(GGUFError, QuantmillError)
