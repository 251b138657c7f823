"""Dropping experts: what is cut, which counts change, what is refused; llama.cpp and transformers agree on the rest."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quantmill import qkernels
from quantmill.cli import main
from quantmill.gguf_io import GGUFSink, OutputTensor, TensorSpec, open_source
from quantmill.gguf_io.metadata import GGUFValueType, Metadata, MetaValue
from quantmill.imatrix.matrix import Entry, ImportanceMatrix
from quantmill.imatrix.store import save
from quantmill.jobs.cut_experts import remapped
from quantmill.jobs.edits import Edits, open_model
from quantmill.jobs.errors import PlanError
from quantmill.jobs.prune_rewrite import in_own_types, stored, widened
from quantmill.jobs.quantize import Job, plan_job, run
from quantmill.models.model import load
from quantmill.qkernels import to_float32
from quantmill.recipe import Recipe, RecipeError
from quantmill.recipe.prune_experts import (
    Experts,
    Share,
    expert_layers,
    find_experts,
    least_salient,
    parse_share,
)
from tests.support.llama_model import LlamaModel
from tests.support.measure_families import COMMON, FAMILIES, random_model
from tests.support.measure_models import EXAMPLE, tiny, written_again

KEPT = {layer: tuple(e for e in range(8) if e not in (layer, layer + 4)) for layer in range(4)}
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
WITH_EXPERTS = [name for name, (_, settings) in FAMILIES.items() if any(settings.get(key) for key in COUNTS)]
USUAL = ("qwen3 moe", "gpt-oss", "deepseek v3")  # fused, with biases, in groups; the others are a sweep
IDS = list(range(3, 51))


def test_refitted_matrices_that_cannot_be_packed_again_are_told(tmp_path):
    """COPY keeps types, but IQ1 wants importance: what was refitted is F32, and the file says so before it is made."""
    path, name = tmp_path / "iq1.gguf", "blk.0.attn_output.weight"
    source = open_source(tiny("F16"))
    with GGUFSink(path, source.metadata, [_changed(spec, name) for spec in source.specs()]) as sink:
        for spec in source.specs():
            values = source.read(spec.name)
            if spec.name == name:
                weights = np.ones(spec.n_cols, np.float32)
                values = qkernels.quantize(values.view(np.float16).astype(np.float32), "IQ1_S", weights)
            sink.write(spec.name, values)
        sink.commit()
    rows = torch.zeros(1, *reversed(next(s.shape for s in source.specs() if s.name == name)))
    edits = in_own_types(str(path), Edits({}, {name: stored(name, rows, "IQ1_S")}))
    assert widened(str(path), edits) == {name: "IQ1_S"}
    assert widened(str(tiny("F16")), edits) == {}


def _changed(spec, name):
    return OutputTensor(spec.name, spec.shape, "IQ1_S" if spec.name == name else spec.type)


def test_shares_on_the_command_line():
    assert parse_share("0.25") == parse_share("auto:0.25") == Share(0.25)
    assert parse_share("32") == parse_share("auto:32") == Share(32)
    for text in ("", "0", "1.5", "-1", "auto:", "x", "nan", "inf", "²"):
        with pytest.raises(RecipeError, match="--prune-experts"):
            parse_share(text)


@pytest.mark.parametrize(
    ("experts", "amount", "left_or_words"),
    [
        (Experts(8, 2), 0.25, 6),
        (Experts(8, 2), 6, 2),
        (Experts(8, 2), 7, "every token uses 2 of 8 experts, 1 would remain; at most 6"),
        (Experts(8, 2), 8, "none would remain"),
        (Experts(8, 2), 9, "the model has 8 experts"),
        (Experts(8, 2), 0.05, "none would leave"),
        (Experts(256, 8, 8, 4), 0.3, 176),
        (Experts(256, 8, 8, 4), 20, "cannot be divided into 8 groups"),
        (Experts(16, 2, 8, 4), 8, "1 experts a group would remain; the router needs 2"),
        (Experts(32, 8, 8, 2), 8, "3 experts a group would remain; the router needs 4"),
    ],
)
def test_how_many_can_leave(experts, amount, left_or_words):
    if isinstance(left_or_words, int):
        assert experts.n - Share(amount).of(experts) == left_or_words
    else:
        with pytest.raises(RecipeError, match=left_or_words):
            Share(amount).of(experts)


def test_the_least_salient_leave_as_many_from_every_group():
    assert least_salient([3, 1, 2, 1], 1, Experts(4, 1)) == (0, 1, 2)  # of equals the first stays
    assert least_salient([9, 8, 7, 6, 1, 2, 3, 4], 2, Experts(8, 2, 2, 1)) == (0, 1, 2, 5, 6, 7)


def test_a_table_of_tokens_is_numbered_anew():
    """DeepSeek-V4's first layers look up which experts a token goes to: gone ones are replaced, none comes twice."""
    table = np.array([[0, 3], [2, 1], [3, 2]], "<i4").view(np.uint8)
    found = remapped(table, (0, 1, 3), 4).view("<i4")
    np.testing.assert_array_equal(found, [[0, 2], [2, 1], [2, 0]])


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_a_cut_copies_blocks(kind, tmp_path):
    """COPY of a quantized file: expert e of the output is the bytes of expert kept[e]; the plan is exact."""
    output = tmp_path / "cut.gguf"
    job = Job(str(tiny(kind)), output, Recipe("COPY"), edits=Edits(KEPT))
    assert run(job).plan.file_bytes == output.stat().st_size == plan_job(replace(job, force=True)).file_bytes
    old, new = open_source(tiny(kind)), open_source(output)
    assert new.metadata.value("qwen3moe.expert_count") == 6
    assert new.metadata.value("qwen3moe.expert_used_count") == 2
    for spec in old.specs():
        rows, name = old.read(spec.name), spec.name
        if "_exps" in name or "ffn_gate_inp" in name:
            rows = rows.reshape(8, -1, rows.shape[-1])[list(KEPT[int(name.split(".")[1])])]
        np.testing.assert_array_equal(new.read(name), rows.reshape(-1, rows.shape[-1]), err_msg=name)
    with LlamaModel(output) as model:
        assert np.isfinite(model.logits(IDS)).all()


def test_rows_are_read_in_any_pieces():
    source = open_model(str(tiny("F16")), Edits(KEPT))
    name = "blk.1.ffn_down_exps.weight"
    whole = source.read(name)
    for step in (1, 100, 256, 700):
        pieces = [source.read(name, at, min(step, 1536 - at)) for at in range(0, 1536, step)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        fetched = [source.fetch(name, at, min(step, 1536 - at))[0] for at in range(0, 1536, step)]
        np.testing.assert_array_equal(np.concatenate(fetched), whole)


def test_importance_is_cut_with_the_experts(tmp_path):
    """Q2_K of the cut model with the whole model's importance: the same bytes as with the cut rows alone."""
    rng = np.random.default_rng(0)
    name = "blk.2.ffn_up_exps.weight"
    whole = Entry(rng.random((8, 256), np.float32), np.arange(1, 9))
    cut = Entry(whole.in_sum2[list(KEPT[2])], whole.counts[list(KEPT[2])])
    outputs = []
    for label, entry in (("whole", whole), ("cut", cut)):
        save(tmp_path / f"{label}.imatrix.gguf", ImportanceMatrix({name: entry}))
        outputs.append(tmp_path / f"{label}.gguf")
        imatrix = str(tmp_path / f"{label}.imatrix.gguf")
        job = Job(str(tiny("F16")), outputs[-1], Recipe("Q4_K"), imatrix=imatrix, edits=Edits(KEPT))
        assert [e.importance_name for e in run(job).plan.entries if e.name == name] == [name]
    whole_rows, cut_rows = (open_source(path).read(name) for path in outputs)
    np.testing.assert_array_equal(whole_rows, cut_rows)


def test_importance_of_another_model_is_refused(tmp_path):
    entry = Entry(np.ones((4, 256), np.float32), np.ones(4, np.int64))
    save(tmp_path / "other.gguf", ImportanceMatrix({"blk.2.ffn_up_exps.weight": entry}))
    job = Job(str(tiny("F16")), tmp_path / "x.gguf", Recipe("Q4_K"), edits=Edits(KEPT))
    with pytest.raises(PlanError, match="holds 1024 values for it, 1536 are needed"):
        run(replace(job, imatrix=str(tmp_path / "other.gguf")))


def test_experts_of_another_number_than_the_metadata_says(tmp_path):
    source = open_source(tiny("F16"))
    wrong = source.metadata.replace("qwen3moe.expert_count", MetaValue(GGUFValueType.UINT32, 7))
    written_again(tiny("F16"), tmp_path / "wrong.gguf", metadata=wrong)
    with pytest.raises(RecipeError, match="should be the 7 experts of the metadata"):
        open_model(str(tmp_path / "wrong.gguf"), Edits(dict.fromkeys(range(4), (0, 1, 2))))


def test_models_whose_experts_cannot_be_cut():
    dense = Metadata({"general.architecture": MetaValue(GGUFValueType.STRING, "llama")})
    with pytest.raises(RecipeError, match="the model has no experts"):
        find_experts(dense, [])
    grove = Metadata(
        {
            "general.architecture": MetaValue(GGUFValueType.STRING, "grovemoe"),
            "grovemoe.expert_count": MetaValue(GGUFValueType.UINT32, 8),
        }
    )
    names = ("blk.0.ffn_up_exps.weight", "blk.0.ffn_up_chexps.weight")
    with pytest.raises(RecipeError, match="shared by sets of experts"):
        find_experts(grove, [TensorSpec(name, (32, 32, 8), "F16", 0, 0) for name in names])


def test_without_a_text_weights_decide(tmp_path, capsys):
    """AIMER: the experts of the largest mean |w| / RMS leave; the file says which."""
    output = tmp_path / "cut.gguf"
    assert main(["quantize", "--prune-experts", "auto:0.25", str(tiny("F16")), str(output), "COPY"]) == 0
    assert "--calibration FILE measures" in capsys.readouterr().err
    source, made = open_source(tiny("F16")), open_source(output)
    gone = np.reshape(list(made.metadata.value("quantmill.pruned.experts")), (4, 2))
    assert list(made.metadata.value("quantmill.pruned.experts_layers")) == [0, 1, 2, 3]
    assert made.metadata.value("quantmill.pruned.experts_of") == 8
    for layer in range(4):
        parts = [
            to_float32(source.read(f"blk.{layer}.ffn_{part}_exps.weight"), "F16").reshape(8, -1)
            for part in ("gate", "up", "down")
        ]
        weights = np.concatenate(parts, axis=1).astype(np.float64)
        scores = np.abs(weights).mean(1) / np.sqrt(np.square(weights).mean(1))
        assert set(gone[layer]) == set(np.argsort(scores)[-2:])


def _kept(n_experts: int, n_groups: int, layers: list[int]) -> dict[int, tuple[int, ...]]:
    """One expert of every group leaves, another one in every layer."""
    each = n_experts // n_groups
    return {layer: tuple(e for e in range(n_experts) if e % each != layer % each) for layer in layers}


def _cut_by_transformers(original: Any, kind: str, settings: dict[str, Any], kept: dict[int, Any]) -> Any:
    """transformers' own model of fewer experts, with the weights of those that stay."""
    smaller = copy.deepcopy(COMMON | settings)
    n_kept = len(next(iter(kept.values())))
    key = next(key for key in COUNTS if key in smaller)
    n_experts, smaller[key] = smaller[key], n_kept
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **smaller)).float().eval()
    state, whole = model.state_dict(), original.state_dict()
    for name, tensor in state.items():
        values = whole[name]
        for axis, (old, new) in enumerate(zip(values.shape, tensor.shape, strict=True)):
            if old != new:
                assert (old, new) == (n_experts, n_kept), name
                layer = int(name.split("layers.")[1].split(".")[0])
                values = values.index_select(axis, torch.tensor(kept[layer]))
        state[name] = values
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in WITH_EXPERTS],
)
def test_families_with_experts(name, tmp_path):
    """The cut file computes in llama.cpp, here, and as Hugging Face's what transformers computes of the same cut."""
    torch.set_num_threads(1)
    kind, settings = FAMILIES[name]
    folder, output = tmp_path / "model", tmp_path / "cut.gguf"
    original = random_model(folder, kind, settings)
    source = open_source(folder)
    experts = find_experts(source.metadata, source.specs())
    layers = expert_layers(source.specs())
    kept = _kept(experts.n, experts.n_groups, layers)
    with torch.no_grad():
        wanted = _cut_by_transformers(original, kind, settings, kept)(torch.tensor([IDS])).logits[0]
    run(Job(str(folder), output, Recipe("F32"), edits=Edits(kept)))
    size = float(wanted.abs().max())
    loaded = load(output)
    torch.testing.assert_close(loaded.logits(torch.tensor([IDS]))[0], wanted, atol=2e-5 * size, rtol=0)
    loaded.close()
    if (
        name == "deepseek v2"
    ):  # without q_lora_rank llama.cpp takes it for the large model unless it has 27 layers
        return
    with LlamaModel(output) as model:
        np.testing.assert_allclose(model.logits(IDS), wanted.numpy(), atol=2e-3 * size, rtol=0)


def test_what_prune_is_not_given(tmp_path, capsys):
    for options, words in (
        (["--to-hf", str(tmp_path / "x")], "give --layers or --experts"),
        (["--layers", "1"], "--to-hf DIR"),
        (["--to-hf", str(tmp_path / "x"), "--layers", "auto:1"], "needs a text"),
        (["--to-hf", str(tmp_path / "x"), "--layers", "1", "--merge"], "belongs to pruning that is measured"),
    ):
        assert main(["prune", str(EXAMPLE), *options]) == 2
        assert words in capsys.readouterr().err
