"""What a family cannot be in llama.cpp is refused in one line, before anything is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from quantmill.cli import main
from quantmill.gguf_io.convert import SUPPORTED
from tests.support.bad_models import refused
from tests.support.convert_models import edit, tensors, write_model, write_shards

DOCS = Path(__file__).parents[1] / "docs" / "families.md"
KINDS = ["linear_attention", "full_attention"]

SETTINGS = [
    (
        "deepseek-v4",
        {"compress_ratios": [0, 4]},
        r"compress_ratios must be a list of 5 layers, each 0, 4 or 128",
    ),
    ("deepseek-v4", {"compress_ratios": [0, 4, 8, 4, 0]}, "each 0, 4 or 128"),
    (
        "deepseek-v4",
        {"scoring_func": "sigmoid"},
        "scoring_func is 'sigmoid'; llama.cpp has sqrtsoftplus only",
    ),
    ("deepseek-v4", {"hc_mult": 2}, "hc_mult is 2; llama.cpp has 4 only"),
    ("deepseek-v4", {"o_groups": 3}, "o_groups 3 does not divide the heads' output, 512"),
    ("deepseek-v4", {"num_hash_layers": 3}, r"blk\.2\.ffn_gate_tid2eid\.weight\) is missing"),
    ("muse-glimmer", {"post_norm_eps": 1e-6}, "post_norm_eps is 1e-06; llama.cpp has 1e-08 only"),
    (
        "muse-glimmer",
        {"layer_rope_theta": [1e4] * 5},
        "layer_rope_theta must be rope_theta where a layer has a window",
    ),
    ("qwen4-exp", {"ple_layer_ids": [2, 3]}, r"ple_layer_ids \[2, 3\]: llama.cpp has one such layer only"),
    ("qwen4-exp", {"hc_count": 1}, "hc_count is 1; llama.cpp has 2 streams or more"),
    ("qwen4-exp", {"ple_embed_dim": 255}, "ple_embed_dim 255 is not divided by 4 heads of the hash"),
    ("qwen4-exp", {"indexer_budget": None}, "key 'indexer_budget' is missing"),
    ("bert", {"hidden_act": "relu"}, "hidden_act is 'relu'; llama.cpp has gelu only"),
    ("bert", {"position_embedding_type": "relative_key"}, "llama.cpp has absolute only"),
    ("xlm-roberta", {"hidden_act": "relu"}, "hidden_act is 'relu'; llama.cpp has gelu only"),
    (
        "xlm-roberta",
        {"lora_adaptations": ["text-matching"]},
        r"\(Jina Embeddings 3\) is not supported; convert it",
    ),
    ("nomic-bert", {"qkv_proj_bias": True}, "qkv_proj_bias is True; llama.cpp has False only"),
    ("nomic-bert", {"moe_every_n_layers": 2}, "Nomic Embed with experts is not supported"),
    ("kimi-k3-text", {"hidden_act": "silu"}, "hidden_act is 'silu'; llama.cpp has situ only"),
    ("kimi-k3-text", {"mla_use_nope": False}, "mla_use_nope is False; llama.cpp has True only"),
    ("kimi-k3-text", {"activation_situ_beta": None}, "key 'activation_situ_beta' is missing"),
    ("kimi-k3-text", {"num_attention_heads": 2}, "delta attention has 4 heads, num_attention_heads is 2"),
    (
        "kimi-k3-text",
        {"attn_res_block_size": 0},
        "mlp_res_norm.weight: architecture kimi-k3 has no GGUF tensor",
    ),
    ("glm-5.3-flash", {"hc_mult": 2}, r"hc_mult is 2; llama.cpp has 4 only"),
    ("glm-5.3-flash", {"qk_rope_head_dim": 64}, "qk_rope_head_dim is 64; llama.cpp has 0 only"),
    ("glm-5.3-flash", {"mhc": False}, "mhc is False; llama.cpp has True only"),
    ("glm-5.3-flash", {"mla_use_nope": False}, "mla_use_nope is False; llama.cpp has True only"),
    ("glm-5.3-flash", {"mlp_layer_types": ["sparse"]}, "mlp_layer_types must be a list of 5 layers"),
    ("glm-5.3-flash", {"index_kpool": 1}, "index_kpool must be from 2 on and divide index_topk, 64, not 1"),
    ("glm-5.3-flash", {"index_kpool": 3}, "divide index_topk, 64, not 3"),
    ("glm-5.3-flash", {"num_attention_heads": 2}, "delta attention has 4 heads, num_attention_heads is 2"),
    (
        "glm-5.3-flash",
        {"mlp_layer_types": ["sparse", "dense", *["sparse"] * 3]},
        "mlp_layer_types has a dense layer behind one with experts",
    ),
    (
        "glm-5.3-flash",
        {"indexer_types": ["full", "full", "shared", "full", "full"]},
        "indexer_types: layer 2 shares, but none before it attends",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), SETTINGS)
def test_settings(name, changes, message, tmp_path):
    path = write_model(name, tmp_path) / "config.json"
    inner = json.loads(path.read_text()).get("text_config")
    edit(path, **({"text_config": {**inner, **changes}} if inner else changes))
    refused(tmp_path, message)


def _rewritten(name, directory, changes):
    """The model with some of its tensors changed; None leaves one out."""
    write_model(name, directory)
    found = {**tensors(name), **changes}
    write_shards(directory, {name: value for name, value in found.items() if value is not None})


HASHED = "layers.0.ffn.gate.tid2eid"
TABLES = {
    "an expert that is not there": (
        ("I64", np.full((512, 2), 4, np.int64)),
        "numbers from 4 to 4; there are 4",
    ),
    "a negative number": (("I32", np.full((512, 2), -1, np.int32)), "numbers from -1 to -1; there are 4"),
    "no whole numbers": (("F32", np.zeros((512, 2), np.float32)), "must be I64 or I32"),
    "another shape": (
        ("I64", np.zeros((512, 3), np.int64)),
        r"has shape \[512, 3\], config.json asks for \[512, 2\]",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_experts(case, tmp_path):
    table, message = TABLES[case]
    _rewritten("deepseek-v4", tmp_path, {HASHED: table})
    refused(tmp_path, message)


HASH = "model.language_model.layers.1.ple.ple_embedding."
PARTS = {
    "no sizes": (
        "ngram_heads_vocab_sizes",
        None,
        "ngram_heads_vocab_sizes is missing: the checkpoint is incomplete",
    ),
    "sizes in floats": (
        "ngram_heads_vocab_sizes",
        ("F32", np.ones(4, np.float32)),
        r"F32 \[4\] must be a list of whole numbers, I64",
    ),
    "a part too few": ("ngram_embedding.shard_3.weight", None, r"3 of 4 experts are there, missing \[3\]"),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_table_in_parts(case, tmp_path):
    name, value, message = PARTS[case]
    _rewritten("qwen4-exp", tmp_path, {HASH + name: value})
    refused(tmp_path, message)


QKV = "model.layers.1.self_attn.qkv_proj.weight"


@pytest.mark.parametrize("shape", [(5, 2), (4, 1), (16, 2)])
def test_scales_of_no_number_of_ranks(shape, tmp_path):
    _rewritten("mimo-v2.5-nextn", tmp_path, {f"{QKV}_scale_inv": ("F32", np.ones(shape, np.float32))})
    refused(tmp_path, r"qkv_proj\.weight_scale_inv \[.* does not fit .*qkv_proj\.weight")


SCORE = "language_model.model.layers.2.mlp_res_"


def test_products_of_two(tmp_path):
    _rewritten("kimi-k3-text", tmp_path, {f"{SCORE}proj.weight": None})
    refused(
        tmp_path,
        r"whose product is blk\.2\.ffn_res_score\.weight is missing, .*norm.weight is there",
    )
    _rewritten("kimi-k3-text", tmp_path, {f"{SCORE}norm.weight": ("F32", np.ones(8, np.float32))})
    refused(tmp_path, r"mlp_res_proj\.weight: has shape \[256\], .*norm\.weight \[8\]; .* is their product")


def test_words_that_are_not_split_as_bert_does(tmp_path):
    write_model("bert", tmp_path)
    edit(tmp_path / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    refused(tmp_path, "llama.cpp splits words as BERT does")


UNKNOWN = (
    "RWKV7ForCausalLM",
    "MambaForCausalLM",
    "T5ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "ModelOfTomorrowForCausalLM",
)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_one_line_with_the_way_out(name, tmp_path, capsys):
    directory, out = tmp_path / "model", tmp_path / "out.gguf"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": [name]}))
    (tmp_path / "text").write_text("Some words.")
    for words in (
        ["convert", directory, out],
        ["quantize", directory, out, "Q4_K_M"],
        ["imatrix", directory, "-f", tmp_path / "text", "-o", out],
        ["evaluate", directory, "--text", tmp_path / "text"],
        ["prune", "scan", directory, "--calibration", tmp_path / "text"],
        ["squeeze", directory, "--types", "Q4_K_M", "-o", tmp_path / "set"],  # before texts are fetched
    ):
        assert main(list(map(str, words))) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith(
            f"error: architecture {name} is not supported (docs/families.md lists the "
        )
        assert lines[-1].endswith(
            "--outtype f16 and give quantmill the GGUF: quantize knows every architecture"
        )
        assert len(lines[-1]) < 300
        assert not [line for line in lines[:-1] if "error" in line or "Traceback" in line]
        assert not out.exists()


def test_what_the_docs_call_missing_is_refused_with_the_way_out(tmp_path):
    missing = DOCS.read_text(encoding="utf-8").split("## What is missing")[1]
    classes = re.findall(r"`(\w+(?:ForCausalLM|ForConditionalGeneration|Model))`", missing)
    assert {"RobertaModel", "JinaBertModel"} <= set(classes)
    assert not set(classes) & set(SUPPORTED)
    write_model("qwen3-moe", tmp_path)
    for name in classes:
        edit(tmp_path / "config.json", architectures=[name])
        refused(
            tmp_path,
            rf"architecture {name} is not supported.*convert_hf_to_gguf.py --outtype f16 and give quantmill the GGUF",
        )
