"""The walk against a pass of the whole model, and second moments against numpy."""

import numpy as np
import pytest
import torch

from quantmill.gguf_io.source import open_source
from quantmill.models import walked_layer
from quantmill.models.errors import ModelError
from quantmill.models.model import from_source
from quantmill.models.walk import Walk
from quantmill.models.workers import working
from tests.support.measure_models import EXAMPLE, tiny

CPU = torch.device("cpu")


def load(path=EXAMPLE):
    return from_source(open_source(path), path, CPU, torch.float32)


def some_chunks(loaded, n_chunk=3, n_ctx=32):
    text = (EXAMPLE / "calibration.txt").read_text()[:20000]
    ids = loaded.tokenizer.encode(text)[: n_chunk * n_ctx]
    return np.array(ids, np.int32).reshape(n_chunk, n_ctx)


class Rows:
    """Keeps all rows."""

    def __init__(self):
        self.seen = []

    def add(self, batch, seen):
        self.seen.append((batch, seen))

    def join(self, other):
        self.seen += other.seen


def test_an_unchanged_walk_is_a_pass_of_the_model():
    loaded = load()
    chunks = some_chunks(loaded)
    with working(2, "cpu") as workers:
        walk = Walk(loaded, chunks, workers.map)
        for _ in walk.layers():
            pass
    whole = loaded.model.base_model(input_ids=torch.from_numpy(chunks.astype(np.int64)), use_cache=False)
    for stream in (walk.original, walk.changed):
        ended = loaded.model.base_model.norm(torch.cat(list(stream.values())))
        torch.testing.assert_close(ended, whole.last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["GGUF", "directory"])
def test_what_enters_every_matrix_is_what_hooks_see(path):
    """Places, their order and their rows, experts included, against hooks in transformers' own model."""
    from transformers import AutoModelForCausalLM

    loaded = load(tiny("F16") if path == "GGUF" else EXAMPLE)
    chunks = some_chunks(loaded)
    judge = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32)
    inputs = {}
    for name, module in judge.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            module.register_forward_pre_hook(
                lambda m, x, name=name: inputs.update({name: x[0].flatten(0, -2)})
            )
    with torch.no_grad():
        judge(input_ids=torch.from_numpy(chunks.astype(np.int64)), use_cache=False)
    with working(1, "cpu") as workers:
        for layer in Walk(loaded, chunks, workers.map).layers():
            names = [taker[0].split(".")[2] for place in layer.places for taker in place.takers]
            experts = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]
            assert names == ["attn_q", "attn_k", "attn_v", "attn_output", *experts]
            for place in layer.places[:2]:
                seen = layer.visit(place, Rows).seen
                rows = torch.cat([one.changed[0] for _, one in seen])
                torch.testing.assert_close(
                    rows, inputs[place.takers[0][1].removesuffix(".weight")], rtol=1e-3, atol=1e-4
                )
            n_routed = sum(sum(one.counts) for _, one in layer.visit(layer.places[2], Rows).seen)
            assert n_routed == chunks.size * judge.config.num_experts_per_tok


def test_the_changed_stream_takes_changed_weights():
    loaded = load()
    chunks = some_chunks(loaded)
    with working(1, "cpu") as workers:
        walk = Walk(loaded, chunks, workers.map)
        for layer in walk.layers():
            if layer.index == 0:
                output = layer.places[1]
                layer.change(
                    "blk.0.attn_output.weight", torch.zeros_like(layer.weight("blk.0.attn_output.weight"))
                )
                residual = layer.visit(output, Rows).seen[0][1].residual
                assert residual is not None
                assert not residual.any()  # nothing before the output projection has changed
                (_, seen), *_ = layer.visit(layer.places[2], Rows).seen
                assert not torch.equal(seen.original, seen.changed)
    assert not torch.equal(walk.original[0], walk.changed[0])


def test_experts_are_told_what_routing_and_the_stream_have_lost():
    """Rows of the down matrices, and what each expert should add to them, against transformers' modules."""
    from transformers import AutoModelForCausalLM

    loaded = load()
    chunks = some_chunks(loaded, 1)
    layer = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32).model.layers[0]
    with working(1, "cpu") as workers, torch.no_grad():
        layers = Walk(loaded, chunks, workers.map).layers()
        walked = next(layers)
        start = walked.walk.original[0].clone()
        unchanged = [one for _, one in walked.visit(walked.places[3], Rows).seen]
        name = "blk.0.attn_output.weight"
        walked.change(name, torch.zeros_like(walked.weight(name)))
        seen = [one for _, one in walked.visit(walked.places[3], Rows).seen]
        ended = walked._outputs[0]
        layers.close()
        assert all(one.residual.abs().max() < 1e-4 for one in unchanged)
        moe, norm = layer.mlp, layer.post_attention_layernorm
        _, routed, index = moe.gate(norm(start)[0])
        x = norm(start + layer.self_attn(layer.input_layernorm(start), *_positions(loaded, start))[0])[0]
        lost = (ended - start)[0] - moe.experts(x, index, routed)
        for one in seen:
            (expert,) = one.experts
            tokens = (index == expert).any(1).nonzero()[:, 0]
            torch.testing.assert_close(one.residual[0], lost[tokens], rtol=1e-3, atol=1e-4)


def _positions(loaded, states):
    ids = torch.arange(states.shape[1])[None]
    return loaded.model.model.rotary_emb(states, ids), None


def changed_stream(visiting):
    loaded = load()
    with working(1, "cpu") as workers:
        walk = Walk(loaded, some_chunks(loaded), workers.map)
        for layer in walk.layers():
            for place in layer.places:
                if visiting:
                    layer.visit(place, Rows)
                for name, _ in place.takers:
                    layer.change(name, layer.weight(name) * 1.1)
    return torch.cat(list(walk.changed.values()))


def test_what_visits_leave_out_is_what_a_whole_pass_gives():
    """Parts that ran on the way to a place are not run again: the stream is that of a walk without visits."""
    assert torch.equal(changed_stream(visiting=True), changed_stream(visiting=False))


def test_a_late_change_counts_in_what_was_run_before():
    loaded = load()
    with working(1, "cpu") as workers:
        ended = []
        for late in (True, False):
            walk = Walk(loaded, some_chunks(loaded), workers.map)
            for layer in walk.layers():
                name = "blk.0.attn_q.weight"
                if late and layer.index == 0:
                    layer.visit(layer.places[2], Rows)
                if layer.index == 0:
                    layer.change(name, -layer.weight(name))
            ended.append(torch.cat(list(walk.changed.values())))
    assert torch.equal(*ended)


def test_experts_side_by_side_are_seen_as_one_by_one(monkeypatch):
    loaded = load()
    found = []
    for together in (1, 3):
        monkeypatch.setitem(walked_layer.TOGETHER, "cpu", together)
        with working(1, "cpu") as workers:
            layers = Walk(loaded, some_chunks(loaded), workers.map).layers()
            layer = next(layers)
            for place in layer.places[2:4]:
                rows = {}
                for batch, seen in layer.visit(place, Rows).seen:
                    for i, (expert, n) in enumerate(zip(seen.experts, seen.counts, strict=True)):
                        assert not seen.changed[i, n:].any()
                        rows[batch, expert] = seen.changed[i, :n]
                found.append(rows)
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one.keys() == other.keys()
        for key, rows in one.items():
            torch.testing.assert_close(rows, other[key])


def test_rows_do_not_depend_on_threads():
    made = []
    for threads in (1, 2):
        loaded = load()
        with working(threads, "cpu") as workers:
            for layer in Walk(loaded, some_chunks(loaded), workers.map).layers():
                made += [one.changed for place in layer.places for _, one in layer.visit(place, Rows).seen]
    half = len(made) // 2
    assert all(torch.equal(one, two) for one, two in zip(made[:half], made[half:], strict=True))


def test_a_value_that_is_not_finite_names_layer_and_chunk():
    loaded = load()
    name = "blk.0.attn_output.weight"
    with working(1, "cpu") as workers:
        layers = Walk(loaded, some_chunks(loaded), workers.map).layers()
        first = next(layers)
        first.change(name, torch.full_like(first.weight(name), float("nan")))
        second = next(layers)
        with pytest.raises(ModelError, match=r"blk\.1\.attn_q.*chunk 1 \(layer 1\)"):
            second.visit(second.places[0], Rows)


def test_tokens_outside_the_vocabulary_are_refused():
    loaded = load()
    with pytest.raises(ModelError, match="outside the model's vocabulary"):
        Walk(loaded, np.full((2, 8), 1 << 20, np.int32), lambda work, items: [work(item) for item in items])
