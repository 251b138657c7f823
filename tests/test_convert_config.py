"""config.json completed as its class would complete it: defaults, RoPE in all its shapes, nulls."""

from __future__ import annotations

import json
import math

import pytest

from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.convert.config import EXPERT_COUNTS
from quantmill.gguf_io.convert.families import FAMILIES, deepseek4, family_of
from quantmill.gguf_io.convert.keys import Key
from quantmill.recipe.prune_experts import OF_EXPERTS
from tests.support.convert_models import HASH, MODELS, edit, write_model

# What the conversion reads from a configuration, whichever class it is.
READ = (
    "tie_word_embeddings",
    "max_position_embeddings",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "norm_epsilon",
    "layer_norm_eps",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_group",
    "topk_group",
    "sliding_window",
    "layer_types",
    "logit_scale",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "n_shared_experts",
    "first_k_dense_replace",
    "routed_scaling_factor",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "original_max_position_embeddings",
)
SPARSE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}


# Classes that hold models of several kinds, each with defaults of its own; classes of wrappers, whose text has some.
SEVERAL = (
    *("Mistral3ForConditionalGeneration", "GraniteMoeHybridForCausalLM", "NemotronHForCausalLM"),
    *("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
    *("MiniMaxM3SparseForConditionalGeneration", "Glm5NextForConditionalGeneration"),
    *("MuseGlimmerForConditionalGeneration", "Qwen4ExpForConditionalGeneration"),
    "DeepseekV4ForCausalLM",  # test_defaults_of_deepseek_v4
    "NomicBertModel",  # transformers reads other names than the hub's files have
)
# To transformers, the last under the names that the hub's files use.
UNKNOWN = (
    "BailingMoeForCausalLM",
    "BailingMoeV2ForCausalLM",
    "KimiK3ForConditionalGeneration",
    "MiMoV2ForCausalLM",
    "Step3p5ForCausalLM",
)
ONE_KIND = [family for family in FAMILIES if family.classes[0] not in (*SEVERAL, *UNKNOWN)]


@pytest.mark.parametrize("family", ONE_KIND, ids=lambda family: family.classes[0])
def test_defaults_are_those_of_the_configuration_class(family):
    """A config.json with the required keys only means to us what it means to transformers."""
    from transformers import CONFIG_MAPPING

    model_type = next(m.model_type for m in MODELS.values() if m.architecture == family.classes[0])
    theirs = CONFIG_MAPPING[model_type](**SPARSE).to_dict()
    ours = family.completed(SPARSE)
    written = [name for row in family.keys if isinstance(row, Key) for name in row.names[:1]]
    for key in dict.fromkeys((*READ, *written)):
        if key == "num_local_experts" and key not in ours:
            assert ours.get("num_experts") == theirs.get(key, theirs.get("num_experts"))
        elif theirs.get(key) is not None and (key in ours or key != "layer_types"):
            if key in ("sliding_window", "layer_types") and key not in ours:
                continue  # written by no family that leaves it out
            if (key, model_type) in UNWRITTEN:
                continue
            assert ours.get(key) == theirs[key], key
    rope = theirs.get("rope_parameters")
    if rope is None:  # Kimi-Linear turns nothing
        return
    for kind in ("full_attention", "sliding_attention"):
        mine, other = ours["rope_parameters"].get(kind, {}), rope.get(kind, {})
        assert mine.get("rope_theta") == other.get("rope_theta")
    assert ours["rope_parameters"].get("rope_theta") == rope.get("rope_theta")
    assert ours["rope_parameters"].get("rope_type") == rope.get("rope_type")
    assert ours["rope_parameters"].get("partial_rotary_factor") in (rope.get("partial_rotary_factor"), None)


def test_defaults_of_deepseek_v4():
    """Its class has other names for the kinds of layers, and takes intermediate_size for that of the experts."""
    from transformers import DeepseekV4Config

    sizes = {key: size for key, size in SPARSE.items() if key != "intermediate_size"}
    theirs, ours = DeepseekV4Config(**sizes), deepseek4.FAMILY.completed(sizes)
    for row in deepseek4.FAMILY.keys:
        if isinstance(row, Key):
            assert ours.get(row.names[0]) == getattr(theirs, row.names[0]), row.names[0]
    assert [deepseek4.KINDS[ratio] for ratio in ours["compress_ratios"]] == theirs.layer_types
    assert ours["num_hash_layers"] == theirs.mlp_layer_types.count("hash_moe")
    for key in (
        "qk_rope_head_dim",
        "compress_rope_theta",
        "swiglu_limit",
        "hc_mult",
        "scoring_func",
        "rope_theta",
    ):
        assert ours[key] == getattr(theirs, key), key


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.classes[0])
def test_tensors_with_a_part_for_each_expert_are_cut_with_experts(family):
    models = (model for model in MODELS.values() if model.architecture in family.classes)
    model = next(model for model in models if family.takes(lifted(model.config)))
    expected = family.expected(family.completed({**model.config, **HASH}))
    assert expected
    for name, tensor in expected.items():
        has_parts = any(key in EXPERT_COUNTS for key in tensor.keys.split(", "))
        assert bool(OF_EXPERTS.fullmatch(name)) == has_parts, name


def lifted(config):
    return {**config, **config.get("text_config", {})}


# Defaults of classes that no key is written for.
# To the last two classes head_dim is what RoPE turns of a head; layers behind the last whole group of Ling 3 attend to
# everything in llama.cpp's converter.
UNWRITTEN = {
    *(("head_dim", "granite"), ("head_dim", "granitemoe")),
    *(("head_dim", "bailing_hybrid"), ("head_dim", "kimi_linear"), ("layer_types", "bailing_hybrid")),
}


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
NULLS = {"factor": None, "rope_theta": None}
ROPES = {
    "flat and kinds mixed": (
        "olmo3",
        {"rope_parameters": {**PLAIN, "full_attention": PLAIN, "sliding_attention": PLAIN}},
    ),
    "a flat leftover": (
        "olmo3",
        {"rope_parameters": {**YARN, "full_attention": PLAIN, "sliding_attention": PLAIN}},
    ),
    "older scaling": ("olmo3", {"rope_scaling": YARN, "rope_theta": 500000.0}),
    "older scaling beside kinds": (
        "olmo3",
        {"rope_scaling": YARN, "rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}},
    ),
    "one kind": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {**PLAIN, "rope_type": "linear", "factor": 8.0}}},
    ),
    "older gemma": (
        "gemma3_text",
        {"rope_theta": 2e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "a null scaling": ("llama", {"rope_scaling": None, "rope_parameters": {**YARN, "rope_theta": 2e6}}),
    "dynamic": ("llama", {"rope_theta": 3e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "kinds that are null": (
        "olmo3",
        {"rope_theta": 500000.0, "rope_parameters": {"full_attention": None, "sliding_attention": None}},
    ),
}
CLASSES = {"olmo3": "Olmo3ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "llama": "LlamaForCausalLM"}


@pytest.mark.parametrize("case", ROPES)
def test_rope_is_that_of_the_configuration_class(case):
    from transformers import CONFIG_MAPPING

    model_type, settings = ROPES[case]
    family = family_of({"architectures": [CLASSES[model_type]]})
    ours = family.completed(SPARSE | settings)["rope_parameters"]
    theirs = CONFIG_MAPPING[model_type](**SPARSE, **json.loads(json.dumps(settings))).rope_parameters
    for kind in ("full_attention", "sliding_attention"):
        mine, other = ours.get(kind, ours), theirs.get(kind, theirs)
        keys = ["rope_type", "rope_theta"]
        keys += ["factor"] if other["rope_type"] != "default" else []
        keys += ["original_max_position_embeddings"] if other["rope_type"] == "yarn" else []
        for key in keys:
            assert mine[key] == other.get(key), (kind, key)


def test_a_null_inside_hides_nothing():
    text = {
        **SPARSE,
        "rope_theta": None,
        "sliding_window": None,
        "rope_parameters": {"full_attention": NULLS},
    }
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "rope_theta": 7e5, "sliding_window": 64}
    raw |= {"text_config": text}
    config = family_of(raw).completed(raw)
    assert config["sliding_window"] == 64
    assert config["rope_parameters"]["full_attention"] == {"rope_type": "default", "rope_theta": 7e5}
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0


IGNORED = {
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "no dynamic scaling"),
    "unknown": ("llama", {"rope_scaling": {"type": "spiral", "factor": 2.0}}, "no scaling of type 'spiral'"),
    "unknown for a kind": (
        "olmo3",
        {"rope_parameters": {"full_attention": {"rope_type": "ntk"}}},
        "no scaling of type 'ntk'",
    ),
    "llama3": (
        "qwen2",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
        "no llama3 for this architecture",
    ),
    "no scaling at all": (
        "gemma2",
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "no linear for this",
    ),
    "none by its own key": ("cohere2", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "no yarn for this"),
    "scaling in tensors only": (
        "phi3",
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        "no yarn for this",
    ),
    "longrope": ("qwen2", {"rope_scaling": {"type": "su", "long_factor": [1.0]}}, "no longrope for this"),
    "no factor": ("qwen2", {"rope_scaling": {"type": "yarn"}}, "type yarn without a factor"),
    "windows": (
        "olmo3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "linear there is left out",
    ),
}


@pytest.mark.parametrize("case", IGNORED)
def test_rope_that_llama_cpp_ignores_is_said(case, tmp_path):
    name, settings, message = IGNORED[case]
    directory = write_model(name, tmp_path)
    edit(directory / "config.json", **settings)
    (warning,) = open_checkpoint(directory).warnings
    assert warning.startswith("config.json: RoPE: ")
    assert message in warning


def test_mrope_sections_are_written_and_other_names_of_theta_read(tmp_path):
    directory = write_model("llama", tmp_path)
    edit(
        directory / "config.json",
        rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]},
        rotary_emb_base=7e5,
    )
    metadata = open_checkpoint(directory).metadata
    assert list(metadata.value("llama.rope.dimension_sections")) == [8, 12, 12, 0]
    assert metadata.value("llama.rope.freq_base") == 7e5


def test_text_config_is_lifted_and_completed():
    """The published Gemma 3 4B says no more than this."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    from transformers import Gemma3TextConfig

    ours, theirs = family_of(raw).completed(raw), Gemma3TextConfig(**text).to_dict()
    for key in (
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "sliding_window",
        *READ[:1],
    ):
        assert ours[key] == theirs[key], key
    assert ours["rope_parameters"] == theirs["rope_parameters"]


@pytest.mark.parametrize(
    ("kind", "factor"), [("su", math.sqrt(1 + math.log(4) / math.log(512))), ("yarn", 0.1 * math.log(4) + 1)]
)
def test_phi_3_scales_attention_as_the_type_says(kind, factor, tmp_path):
    """conversion/phi.py: Phi3MiniModel.generate_extra_tensors."""
    directory = write_model("phi3", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    rotated = config["hidden_size"] // config["num_attention_heads"]
    edit(
        directory / "config.json",
        max_position_embeddings=2048,
        original_max_position_embeddings=512,
        rope_scaling={
            "type": kind,
            "long_factor": [2.0] * (rotated // 2),
            "short_factor": [1.0] * (rotated // 2),
        },
    )
    source = open_checkpoint(directory)
    assert source.warnings == ()
    assert source.metadata.value("phi3.rope.scaling.attn_factor") == pytest.approx(factor, rel=1e-6)
    assert "phi3.rope.scaling.type" not in source.metadata
