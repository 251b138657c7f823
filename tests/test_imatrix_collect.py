"""Collection against llama-imatrix on the example model, and against sums taken by hand on tiny random models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from quantmill.imatrix import coverage, store
from quantmill.imatrix.collect import Result, Settings, collect, together
from quantmill.imatrix.compare import difference
from quantmill.imatrix.matrix import Entry, ImportanceMatrix
from quantmill.imatrix.text import Cutting, Text, chunks_of, read_text
from tests.support.imatrix_models import (
    N_CTX,
    N_VOCAB,
    collected,
    dense_model,
    experts_model,
    some_chunks,
    table_of,
)

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny-qwen3-moe"


@pytest.fixture(scope="module")
def dense() -> Any:
    return dense_model()


@pytest.fixture(scope="module")
def experts() -> Any:
    return experts_model()


def layer_inputs(model: Any, chunks: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What enters each layer's attention, and the head, in float64, from the hidden states alone."""
    with torch.no_grad():
        out = model.model(torch.from_numpy(chunks).long(), output_hidden_states=True)
    states = out.hidden_states[: model.config.num_hidden_layers]
    inputs = [layer.input_layernorm(h) for layer, h in zip(model.model.layers, states, strict=True)]
    return [x.detach().double().reshape(-1, x.shape[-1]) for x in inputs], out.last_hidden_state.double()


@pytest.mark.parametrize("batch", [1, 3])
def test_dense_sums_means_and_counts(dense: Any, batch: int) -> None:
    chunks = some_chunks(5)
    matrix, _ = collected(dense, chunks, batch=batch, with_means=True, process_output=True)
    inputs, last = layer_inputs(dense, chunks)
    expected = {f"blk.{i}.attn_{kind}.weight": x for i, x in enumerate(inputs) for kind in "qkv"}
    expected["output.weight"] = last.reshape(-1, last.shape[-1])
    for name, x in expected.items():
        entry = matrix.entries[name]
        assert entry.counts.tolist() == [5 * N_CTX]
        np.testing.assert_allclose(entry.in_sum2[0], (x * x).sum(0).numpy(), rtol=2e-6)
        assert entry.in_sum is not None
        np.testing.assert_allclose(entry.in_sum[0], x.sum(0).numpy(), rtol=1e-4, atol=1e-5)
    assert set(matrix.entries) == {
        *(f"blk.{i}.{kind}.weight" for i in range(2) for kind in KINDS), "output.weight",
    }  # fmt: skip


KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def test_perplexity_is_that_of_the_second_half_with_bos_in_front(dense: Any) -> None:
    chunks = some_chunks(3)
    _, result = collected(dense, chunks, bos=7)
    ids = torch.from_numpy(chunks).long()
    targets = ids[:, N_CTX // 2 + 1 :]
    ids[:, 0] = 7
    with torch.no_grad():
        logits = dense(ids).logits[:, N_CTX // 2 : -1].double()
    nll = torch.nn.functional.cross_entropy(
        logits.reshape(-1, N_VOCAB), targets.reshape(-1), reduction="none"
    )
    found = result.perplexity()
    assert found is not None
    assert found[0] == pytest.approx(float(nll.mean().exp()), rel=1e-5)
    error = float(nll.std(correction=0)) / (nll.numel() - 1) ** 0.5
    assert found[1] == pytest.approx(found[0] * error, rel=1e-4)


def test_experts_see_what_is_routed_to_them(experts: Any) -> None:
    chunks = some_chunks(4)
    routed: list[tuple[torch.Tensor, torch.Tensor]] = []
    block = experts.model.layers[1].mlp.experts
    handle = block.register_forward_pre_hook(lambda module, args: routed.append((args[0], args[1])))
    matrix, _ = collected(experts, chunks, batch=4)
    handle.remove()
    ((x, chosen),) = routed
    x = x.double()
    up, down = (matrix.entries[f"blk.1.ffn_{kind}_exps.weight"] for kind in ("up", "down"))
    gate_up, weight = block.gate_up_proj.detach().double(), torch.nn.functional.silu
    for e in range(6):
        rows = x[(chosen == e).any(-1)]
        assert up.counts[e] == down.counts[e] == len(rows)
        np.testing.assert_allclose(up.in_sum2[e], (rows * rows).sum(0).numpy(), rtol=1e-5)
        gate, plain = (rows @ gate_up[e].T).chunk(2, dim=-1)
        inner = weight(gate) * plain
        np.testing.assert_allclose(down.in_sum2[e], (inner * inner).sum(0).numpy(), rtol=1e-4, atol=1e-9)
    assert up.counts.sum() == 2 * chunks.size
    router = matrix.entries["blk.1.ffn_gate_inp.weight"]
    np.testing.assert_allclose(router.in_sum2[0], (x * x).sum(0).numpy(), rtol=1e-5)


def test_recording_does_not_change_what_the_model_says(experts: Any) -> None:
    chunks = some_chunks(2)
    with torch.no_grad():
        before = experts(torch.from_numpy(chunks).long()).logits
    seen: list[torch.Tensor] = []
    handle = experts.register_forward_hook(lambda module, args, out: seen.append(out.logits))
    collected(experts, chunks, batch=2, route_all=True)
    handle.remove()
    torch.testing.assert_close(seen[0], before[:, N_CTX // 2 :], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(experts(torch.from_numpy(chunks).long()).logits, before)  # hooks are gone


def test_weights_that_accelerate_brings_in_turn(experts: Any) -> None:
    from quantmill.jobs.collect_load import offload

    chunks = some_chunks(2)
    expected, _ = collected(experts, chunks)
    table = table_of(experts)
    travelling = copy.deepcopy(experts)
    offload(travelling, torch.device("cpu"))
    result = Result()
    for _ in collect(travelling, table, chunks, Settings(), result):
        pass
    for name, entry in result.matrix((), N_CTX).entries.items():
        assert np.array_equal(entry.in_sum2, expected.entries[name].in_sum2), name
        assert np.array_equal(entry.counts, expected.entries[name].counts), name


def test_routing_all_experts_shows_every_token_to_each(experts: Any) -> None:
    chunks = some_chunks(2)
    matrix, _ = collected(experts, chunks, route_all=True)
    up = matrix.entries["blk.0.ffn_gate_exps.weight"]
    assert up.counts.tolist() == [chunks.size] * 6
    assert np.array_equal(up.in_sum2[0], up.in_sum2[5])
    down = matrix.entries["blk.0.ffn_down_exps.weight"]
    assert not np.array_equal(down.in_sum2[0], down.in_sum2[5])


def test_latent_attention_shows_each_head_s_query_and_the_latent() -> None:
    torch.manual_seed(3)
    config = transformers.DeepseekV3Config(
        vocab_size=N_VOCAB, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=24, q_lora_rank=20, qk_rope_head_dim=8,
        v_head_dim=12, qk_nope_head_dim=10, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
        first_k_dense_replace=1, n_shared_experts=1,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(config).eval()
    chunks = some_chunks(3)
    attention = model.model.layers[1].self_attn
    seen: list[torch.Tensor] = []
    handles = [
        attention.q_b_proj.register_forward_hook(lambda module, args, out: seen.append(out)),
        attention.kv_b_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
    ]
    matrix, _ = collected(model, chunks, batch=3)
    for handle in handles:
        handle.remove()
    query, latent = (x.double().reshape(-1, x.shape[-1]) for x in seen)
    nope = query.reshape(-1, 4, 18)[..., :10]
    k_b, v_b = (matrix.columns(f"blk.1.attn_{kind}_b.weight", n, 4) for kind, n in (("k", 10), ("v", 24)))
    assert k_b is not None
    assert v_b is not None
    np.testing.assert_allclose(k_b, (nope * nope).mean(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(v_b, np.tile((latent * latent).mean(0).numpy(), (4, 1)), rtol=1e-5)
    assert {n for n in matrix.entries if n.startswith("blk.1.ffn")} == {
        *(f"blk.1.ffn_{kind}_{of}.weight" for kind in ("gate", "up", "down") for of in ("exps", "shexp")),
        "blk.1.ffn_gate_inp.weight",
    }


def test_a_tied_head_is_collected_under_the_embedding_s_name(experts: Any) -> None:
    chunks = some_chunks(2)
    plain, _ = collected(experts, chunks)
    assert "token_embd.weight" not in plain.entries
    matrix, _ = collected(experts, chunks, process_output=True)
    _, last = layer_inputs(experts, chunks)
    np.testing.assert_allclose(
        matrix.entries["token_embd.weight"].in_sum2[0], (last * last).sum((0, 1)).numpy(), rtol=1e-5
    )


def test_against_llama_imatrix_on_the_example_model() -> None:
    """All 64 chunks that llama-imatrix ran; the issue allows 1 %, measured is below 0.1 %."""
    from quantmill.models.model import load

    transformers.utils.logging.set_verbosity_error()
    loaded = load(EXAMPLE)
    text = Text(EXAMPLE / "calibration.txt")
    tokens = loaded.tokenizer.encode(read_text(text.path))
    chunks = chunks_of([(text, tokens)], Cutting(n_chunks=64))
    result = Result()
    for _ in collect(loaded.model, loaded.table, chunks, Settings(perplexity=False), result):
        pass
    ours, theirs = result.matrix(("calibration.txt",), 512), store.load(EXAMPLE / "imatrix.gguf")
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, theirs.chunk_size)
    assert list(ours.entries) == list(theirs.entries)
    for row in difference(theirs, ours).tensors:
        assert row.relative <= 0.003, row
        assert row.cosine >= 0.99999, row
        assert row.counts <= 0.003, row  # near ties of the router


def test_long_sums_lose_nothing() -> None:
    """Adding small batches to a large total: plain float32 would stand still."""
    from quantmill.imatrix.sums import added, total

    sums = (torch.tensor([2.0**25]), torch.zeros(1))
    for _ in range(1000):
        sums = added(sums, torch.ones(1))
    assert torch.tensor([2.0**25]) + 1 == 2.0**25
    assert total(sums)[0] == np.float32(2.0**25 + 1000)


def test_gaps_name_experts_and_what_becomes_of_them() -> None:
    sums = np.ones((3, 4), np.float32)
    matrix = ImportanceMatrix(
        {
            "blk.0.ffn_up_exps.weight": Entry(sums, np.array([5000, 0, 20])),
            "blk.0.attn_q.weight": Entry(sums[:1], np.array([9000])),
        }
    )
    tensors = [("blk.0.attn_q.weight", 2), ("blk.0.attn_k_b.weight", 3), ("blk.0.attn_norm.weight", 1)]
    tensors += [("blk.0.ssm_conv1d.weight", 2), ("output.weight", 2)]
    names = coverage.uncollected(matrix, tensors)
    missed, scarce = coverage.gaps(matrix, names)
    assert (missed.name, scarce.name) == ("blk.0.attn_k_b.weight", "blk.0.ffn_up_exps.weight")
    assert "without importance" in missed.consequence
    assert (scarce.unseen, scarce.few, scarce.smallest) == ((1,), (2,), 0)


def test_shrinking_draws_experts_toward_their_layer() -> None:
    sums = np.array([[10.0, 30.0], [0.0, 0.0], [2.0, 2.0]], np.float32)
    entry = Entry(sums, np.array([10, 0, 2]))
    matrix = ImportanceMatrix({"blk.0.ffn_up_exps.weight": entry})
    assert coverage.shrunk(matrix, 0) is matrix
    means = coverage.shrunk(matrix, 4).entries["blk.0.ffn_up_exps.weight"].means()
    layer = np.array([1.0, 32 / 12])
    np.testing.assert_allclose(means[1], layer, rtol=1e-6)
    np.testing.assert_allclose(means[0], (10 * np.array([1.0, 3.0]) + 4 * layer) / 14, rtol=1e-6)


@pytest.mark.parametrize(
    ("n_ctx", "n_vocab", "wanted"), [(512, 128256, 8), (512, 50, 64), (32768, 128256, 1)]
)
def test_chunks_run_together_by_the_model_alone(
    monkeypatch: pytest.MonkeyPatch, dense: Any, n_ctx: int, n_vocab: int, wanted: int
) -> None:
    """Sums of another grouping round otherwise: the same command gives the same file however full the GPU is."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: pytest.fail("free memory was asked for"))
    model = copy.deepcopy(dense)
    model.config.vocab_size = n_vocab
    assert together(model, 100, n_ctx, torch.device("cuda")) == wanted
    assert together(model, 100, n_ctx, torch.device("cpu")) == max(1, 2048 // n_ctx)
