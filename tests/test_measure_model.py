"""Models run from GGUF tensors: what they weigh, their names, their tokens. Each family: test_families.py.

Vocabularies: llama.cpp's tokens are checked in test_measure_perplexity.py on the example
model; here the two algorithms are held against the libraries they were made for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantmill.gguf_io import open_source
from quantmill.models.model import from_source, load
from quantmill.models.packed import PackedExperts, PackedLinear
from quantmill.models.tokenizer import from_metadata
from tests.support.measure_families import random_model
from tests.support.measure_models import EXAMPLE, tiny


def test_a_layer_less_runs(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    original = random_model(tmp_path, "qwen3", {"head_dim": 32})
    with torch.no_grad():
        original.model.layers = original.model.layers[:2]
    original.config.num_hidden_layers = 2
    original.config.layer_types = original.config.layer_types[:2]
    original.save_pretrained(tmp_path)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        wanted = original(input_ids=ids).logits
    found = from_source(open_source(tmp_path), tmp_path, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(found.logits(ids), wanted, atol=1e-5, rtol=0)


def test_weights_stay_packed() -> None:
    loaded = load(tiny("Q4_0"))
    source = open_source(tiny("Q4_0"))
    stored = sum(spec.n_bytes for spec in source.specs())
    source.close()
    # Beyond the file: the rotary table, 32 frequencies twice.
    assert loaded.n_bytes == stored + 2 * 32 * 4
    linear = loaded.model.model.layers[0].self_attn.q_proj
    experts = loaded.model.model.layers[0].mlp.experts.gate_up_proj
    assert isinstance(linear, PackedLinear)
    assert isinstance(experts, PackedExperts)
    assert {piece.ggml_type for piece in (*linear.weight.pieces, *experts.weight.pieces)} == {"Q4_0"}
    assert experts[3].shape == (512, 256)


def test_name_map_leads_to_gguf_names() -> None:
    found = load(tiny("F16")).name_map
    assert found["model.layers.2.self_attn.q_proj.weight"] == ("blk.2.attn_q.weight",)
    experts = "model.layers.0.mlp.experts."
    assert found[experts + "gate_up_proj"] == ("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")
    assert found[experts + "down_proj"] == ("blk.0.ffn_down_exps.weight",)
    assert "lm_head.weight" not in found


def test_wide_rows_are_decoded_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(30)[None]
    whole = load(tiny("Q8_0")).logits(ids)
    monkeypatch.setattr("quantmill.models.packed.SLAB", 256 * 100)
    torch.testing.assert_close(load(tiny("Q8_0")).logits(ids), whole, atol=1e-4, rtol=0)


def test_kept_positions_are_the_last() -> None:
    loaded = load(tiny("F16"))
    ids = torch.arange(40)[None]
    torch.testing.assert_close(loaded.logits(ids, first=25), loaded.logits(ids)[:, 25:], atol=1e-4, rtol=0)


def test_byte_pair_tokens_are_those_of_the_tokenizers_library() -> None:
    from tokenizers import Tokenizer

    source = open_source(tiny("F16"))
    ours = from_metadata(source.metadata)
    theirs = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    text = (EXAMPLE / "evaluation.txt").read_text()[
        :20000
    ] + "\n\n  Ünïcode 東京 1234567 don't\t\r\n x=y+1;🦙🦙"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert not ours.add_bos


def test_sentence_pieces_are_those_of_sentencepiece(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        input=str(EXAMPLE / "evaluation.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=1200,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))

    class Value:
        def __init__(self, value: Any):
            self.value = value

    n = theirs.get_piece_size()
    kinds = [
        6 if theirs.is_byte(i) else 2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 1
        for i in range(n)
    ]
    metadata = {
        "tokenizer.ggml.model": Value("llama"),
        "tokenizer.ggml.tokens": Value([theirs.id_to_piece(i) for i in range(n)]),
        "tokenizer.ggml.scores": Value([theirs.get_score(i) for i in range(n)]),
        "tokenizer.ggml.token_type": Value(kinds),
    }
    ours = from_metadata(metadata)
    assert (ours.add_bos, ours.bos) == (True, 1)
    for line in (EXAMPLE / "evaluation.txt").read_text().splitlines()[:200]:
        if line:
            assert ours.encode(line, add_special=False) == theirs.encode(line)
    assert ours.encode("東 <s>") == [1, *theirs.encode("東 <s>")]
    # Written-out control tokens count only when asked for.
    assert ours.encode("a<s>b", add_special=False, parse_special=True).count(1) == 1


def test_vocabulary_flags_come_from_metadata() -> None:
    source = open_source(tiny("F16"))
    metadata = dict(source.metadata)
    from quantmill.gguf_io import GGUFValueType, MetaValue

    metadata["tokenizer.ggml.add_bos_token"] = MetaValue(GGUFValueType.BOOL, True)
    metadata["tokenizer.ggml.bos_token_id"] = MetaValue(GGUFValueType.UINT32, 7)
    assert from_metadata(metadata).encode("a")[0] == 7
    assert from_metadata(metadata).encode("a", add_special=False)[0] != 7


def test_config_of_example_is_what_it_was_made_from() -> None:
    config = json.loads((EXAMPLE / "config.json").read_text())
    rebuilt = load(tiny("F16")).model.config.to_dict()
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "head_dim",
        "moe_intermediate_size",
        "num_experts_per_tok",
    ):
        assert rebuilt[key] == config[key]
    assert np.float32(rebuilt["rms_norm_eps"]) == np.float32(config["rms_norm_eps"])
