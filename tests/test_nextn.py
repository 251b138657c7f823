"""Layers that predict further tokens, run behind their model: llama.cpp computes the same, and imatrix --nextn has sums
for their matrices, under the names that quantizing looks up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quantmill import cli
from quantmill.gguf_io.source import GGUFSource
from quantmill.imatrix import coverage, store
from quantmill.imatrix.collect import Result, Settings, collect
from quantmill.models import nextn
from quantmill.models.errors import ModelError
from quantmill.models.model import LoadedModel, load
from quantmill.qkernels import to_float32
from tests.support.compared_logits import FLOAT_ERROR, TOKENS, distance
from tests.support.convert_models import write_f32, write_model, written_once
from tests.support.llama_model import LlamaModel

MODELS = (
    "cohere2-moe-nextn",
    "deepseek-v3.2-nextn",
    "qwen3-next-nextn",
    "glm4-moe-nextn",
    "glm4-moe-lite-nextn",
    "glm-5-nextn",
    "hy-v3-nextn",
    "ling-3.0-nextn",
    "qwen3.5-further-nextn",
    "qwen3.5-moe-nextn",
)
IDS = torch.tensor([TOKENS])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory):
    """name → its directory, with all of it in model.gguf as F32"""

    def write(name: str, directory: Path) -> Path:
        write_f32(write_model(name, directory), directory / "model.gguf")
        return directory

    return written_once(write, tmp_path_factory.mktemp)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(loaded: LoadedModel) -> tuple[np.ndarray, np.ndarray]:
    """What enters the first further layer beside the tokens, and its logits."""
    seen: list[torch.Tensor] = []
    layer = loaded.model.nextn[0]
    layer.register_forward_hook(lambda module, given, put_out: seen.extend((given[1], put_out)))
    with torch.inference_mode():
        loaded.model(input_ids=IDS, use_cache=False)
        scale = getattr(layer.model, "logit_scale", 1.0)  # behind Cohere's output
        return seen[0][0].numpy(), scale * layer.logits(seen[1])[0].numpy()


FAST = ("glm4-moe-nextn", "qwen3.5-further-nextn", "hy-v3-nextn", "ling-3.0-nextn")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_logits_are_those_of_llama_cpp(name: str, converted) -> None:
    path = converted(name) / "model.gguf"
    loaded = nextn.attach(load(path))
    hidden, logits = run(loaded)
    with LlamaModel(path, nextn=True) as model:
        assert distance(logits, model.logits(TOKENS[1:], hidden)) <= FLOAT_ERROR
    loaded.close()


@pytest.mark.parametrize("name", ["glm4-moe-nextn", "qwen3.5-further-nextn"])
def test_importance_is_the_sum_of_squares_of_what_enters(name: str, converted) -> None:
    path = converted(name) / "model.gguf"
    loaded = nextn.attach(load(path))
    hidden, _ = run(loaded)
    found = sums(loaded)
    assert (
        coverage.uncollected(found, [(spec.name, len(spec.shape)) for spec in GGUFSource(path).specs()]) == []
    )
    plain = sums(load(path))
    assert plain.entries.keys() < found.entries.keys()
    assert all(
        np.array_equal(found.entries[key].in_sum2, entry.in_sum2) for key, entry in plain.entries.items()
    )

    source = GGUFSource(path)
    types = {spec.name: spec.type for spec in source.specs()}
    number = int(source.metadata.value(f"{loaded.architecture}.block_count")) - 1
    eps = source.metadata.value(f"{loaded.architecture}.attention.layer_norm_rms_epsilon")

    def tensor(kind: str) -> torch.Tensor:
        return torch.from_numpy(to_float32(source.read(kind), types[kind]).copy()).squeeze(0)

    def normed(values: torch.Tensor, kind: str) -> torch.Tensor:
        return F.rms_norm(values, values.shape[-1:], tensor(f"blk.{number}.{kind}.weight"), eps)

    embedded = tensor("token_embd.weight")[IDS[0, 1:]]
    both = torch.cat(
        (normed(embedded, "nextn.enorm"), normed(torch.from_numpy(hidden), "nextn.hnorm")), dim=1
    )
    entering = normed(both @ tensor(f"blk.{number}.nextn.eh_proj.weight").T, "attn_norm")
    for kind, expected in (("nextn.eh_proj", both), ("attn_q", entering), ("attn_v", entering)):
        entry = found.entries[f"blk.{number}.{kind}.weight"]
        assert entry.counts.tolist() == [len(TOKENS) - 1]
        np.testing.assert_allclose(entry.in_sum2[0], (expected**2).sum(0), rtol=1e-4)
    loaded.close()


def sums(loaded: LoadedModel) -> store.ImportanceMatrix:
    result = Result()
    settings = Settings(perplexity=False)
    for _ in collect(loaded.model, loaded.table, IDS.numpy().astype(np.int32), settings, result):
        pass
    return result.matrix((), len(TOKENS))


def test_imatrix_nextn_and_types_as_upstream_chooses_them(converted, tmp_path: Path, capsys) -> None:
    directory = converted("glm4-moe-nextn")
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 40, encoding="utf-8")
    collected = {}
    for option in ((), ("--nextn",)):
        output = tmp_path / f"imatrix{len(option)}.gguf"
        words = ["imatrix", str(directory), "-f", str(text), "-o", str(output), "-c", "32", "--chunks", "2"]
        assert cli.main([*words, *option]) == 0
        collected[option] = output
        quantize = ["quantize", "--imatrix", str(output), "--no-fallback", str(directory)]
        code = cli.main([*quantize, str(tmp_path / f"out{len(option)}.gguf"), "IQ2_XXS"])
        assert code == (0 if option else 1)
    assert "error: blk.2.attn_k.weight: IQ2_XXS needs importance" in capsys.readouterr().err
    entries = store.load(collected["--nextn",]).entries
    assert {"blk.2.nextn.eh_proj.weight", "blk.2.ffn_down_exps.weight"} <= entries.keys()
    types = {spec.name: spec.type for spec in GGUFSource(tmp_path / "out1.gguf").specs()}
    assert types["blk.2.ffn_gate_exps.weight"] == types["blk.1.ffn_gate_exps.weight"] == "IQ2_XXS"


def test_models_whose_further_layers_do_not_run(converted) -> None:
    with pytest.raises(ModelError, match=r"further tokens \(NextN, MTP\) is not known, to llama.cpp neither"):
        nextn.attach(load(converted("exaone-moe-nextn") / "model.gguf"))
    with pytest.raises(
        ModelError, match="of nemotron_h_moe is two of its layers in one, which quantmill does not run"
    ):
        nextn.attach(load(converted("nemotron-3-nextn") / "model.gguf"))
    with pytest.raises(ModelError, match="has no layers that predict further tokens"):
        nextn.attach(load(converted("glm4-moe") / "model.gguf"))
