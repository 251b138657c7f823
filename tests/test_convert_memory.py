"""Memory does not grow with the model: a checkpoint of stacked experts, converted by a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.convert_models import MODELS, write_model, write_sparse
from tests.support.packed_models import PEAK, write_zeros

ROOT = Path(__file__).parents[1]
LIMIT_BYTES = 700 << 20
HIDDEN, FEED_FORWARD, EXPERTS, LAYERS = 2048, 768, 128, 2

CONVERT = """
import resource, sys
from quantmill import cli
code = cli.main(["convert", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
raise SystemExit(code)
"""


@pytest.mark.slow
def test_stacked_experts_of_two_gigabytes(tmp_path):
    directory = write_model("qwen3-moe-fused", tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "moe_intermediate_size": FEED_FORWARD, "num_experts": EXPERTS}
    (directory / "config.json").write_text(json.dumps(config))
    for shard in directory.glob("*.safetensors*"):
        shard.unlink()
    sizes = ("vocab_size", "num_attention_heads", "num_key_value_heads")
    vocab, heads, kv_heads = (MODELS["qwen3-moe"].config[size] for size in sizes)
    shapes = {
        "model.embed_tokens.weight": [vocab, HIDDEN],
        "model.norm.weight": [HIDDEN],
        "lm_head.weight": [vocab, HIDDEN],
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + f"{norm}_layernorm.weight": [HIDDEN] for norm in ("input", "post_attention")}
        shapes |= {prefix + f"self_attn.{norm}_norm.weight": [64] for norm in "qk"}
        shapes |= {
            prefix + "self_attn.q_proj.weight": [heads * 64, HIDDEN],
            prefix + "self_attn.k_proj.weight": [kv_heads * 64, HIDDEN],
            prefix + "self_attn.v_proj.weight": [kv_heads * 64, HIDDEN],
            prefix + "self_attn.o_proj.weight": [HIDDEN, heads * 64],
            prefix + "mlp.gate.weight": [EXPERTS, HIDDEN],
            prefix + "mlp.experts.gate_up_proj": [EXPERTS, 2 * FEED_FORWARD, HIDDEN],
            prefix + "mlp.experts.down_proj": [EXPERTS, HIDDEN, FEED_FORWARD],
        }
    stored = {name: ("BF16", tuple(shape)) for name, shape in shapes.items()}
    assert write_sparse(directory / "model.safetensors", stored, {}) > 2 << 30
    child = subprocess.run(
        [sys.executable, "-c", CONVERT, directory, tmp_path / "out.gguf", "--type", "q8_0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    peak = int(child.stdout.split()[-1])
    assert peak < LIMIT_BYTES, f"{peak >> 20} MiB"


@pytest.mark.parametrize("form", ["float-blocks", pytest.param("int4-g32", marks=pytest.mark.slow)])
def test_packed_weights_are_never_whole(form, tmp_path):
    """Matrices of 59 million weights, the first tenth of a gigabyte of a model: two of them in float32 were 470 MB."""
    if sys.platform != "linux":
        pytest.skip("the peak of one program is told by Linux alone")
    assert write_zeros(form, tmp_path / "model", 0.11) > 1e8
    words = ["quantize", tmp_path / "model", tmp_path / "out.gguf", "TQ2_0", "--threads", "1"]
    child = subprocess.run(
        [sys.executable, "-c", PEAK, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout.split()[-2]) < 350
