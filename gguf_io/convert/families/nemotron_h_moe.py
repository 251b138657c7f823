"""Nemotron 3: Nemotron-H with experts instead of feed-forwards, the larger ones in a narrower space."""

from __future__ import annotations

from gguf import MODEL_ARCH

from quantmill.gguf_io.convert import keys, layout, mamba2, nextn, rules, tokenizer
from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.families import nemotron_h
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.keys import BOOL, FLOAT32, Key
from quantmill.gguf_io.convert.rules import Part, Rule

WHERE = r"^(?:model|backbone)\.layers\.(\d+)\.mixer\."
EXPERTS = (
    Rule(rf"{WHERE}experts\.(?P<expert>\d+)\.(up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\3_exps.weight"),)),
    Rule(rf"{WHERE}experts\.(up|down)_proj$", (Part(r"blk.\1.ffn_\2_exps.weight"),)),
    Rule(rf"{WHERE}shared_experts\.(up|down)_proj\.weight$", (Part(r"blk.\1.ffn_\2_shexp.weight"),)),
    Rule(rf"{WHERE}gate\.weight$", (Part(r"blk.\1.ffn_gate_inp.weight"),)),
    Rule(rf"{WHERE}gate\.e_score_correction\.bias$", (Part(r"blk.\1.exp_probs_b.bias"),)),
    Rule(rf"{WHERE}fc1_latent_proj\.weight$", (Part(r"blk.\1.ffn_latent_down.weight"),)),
    Rule(
        r"^model\.layers\.(\d+)\.post_attention_norm\.weight$", (Part(r"blk.\1.post_attention_norm.weight"),)
    ),
    Rule(rf"{WHERE}fc2_latent_proj\.weight$", (Part(r"blk.\1.ffn_latent_up.weight"),)),
)
OF_EXPERTS = {
    "blk.ffn_gate_inp.weight": "n_routed_experts hidden_size",
    "blk.exp_probs_b.bias": "n_routed_experts",
    "blk.ffn_up_exps.weight": "n_routed_experts moe_intermediate_size expert_width",
    "blk.ffn_down_exps.weight": "n_routed_experts expert_width moe_intermediate_size",
    "blk.ffn_up_shexp.weight": "moe_shared_expert_intermediate_size hidden_size",
    "blk.ffn_down_shexp.weight": "hidden_size moe_shared_expert_intermediate_size",
}
NARROWER = {
    "blk.ffn_latent_down.weight": "moe_latent_size hidden_size",
    "blk.ffn_latent_up.weight": "hidden_size moe_latent_size",
}
# An attention and experts behind it, each with its norm, make one layer.
NEXTN = nextn.Nextn(
    "num_nextn_predict_layers",
    {
        "blk.attn_norm.weight": "hidden_size",
        "blk.post_attention_norm.weight": "hidden_size",
        **layout.ATTENTION.shapes,
        **OF_EXPERTS,
        **layout.optional(NARROWER),
    },
    names={"mtp.layers.1.norm.": "mtp.layers.0.post_attention_norm.", "mtp.layers.1.": "mtp.layers.0."},
)
is_moe = nemotron_h.is_kind("moe")


def _read(facts: Facts) -> Settings:
    return {"moe_latent_size": facts.get("moe_latent_size")}


FAMILY = Family(
    classes=nemotron_h.CLASSES,
    arch=MODEL_ARCH.NEMOTRON_H_MOE,
    model_type="nemotron_h",
    tensors=(
        *nemotron_h.MIXERS,
        layout.Tensors(
            OF_EXPERTS,
            is_moe,
        ),
        layout.Tensors(
            NARROWER,
            lambda config, layer: bool(config.get("moe_latent_size")) and is_moe(config, layer),
        ),
    ),
    keys=(
        *nemotron_h.FIRST_KEYS,
        mamba2.kv_heads(nemotron_h.is_kind("full_attention"), nemotron_h.read_kinds("moe")),
        nemotron_h.NORM,
        nemotron_h.OTHER_NORM,
        *keys.experts("n_routed_experts"),
        *keys.EXPERT_GROUPS,
        *nemotron_h.LAST_KEYS,
        *nemotron_h.BEHIND,
        keys.Rows(nemotron_h.lengths("moe_intermediate_size", "moe")),
        Key("moe_intermediate_size", "expert_feed_forward_length"),
        Key("moe_shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        Key("n_shared_experts", "expert_shared_count"),
        Key("norm_topk_prob", "expert_weights_norm", BOOL),
        Key("routed_scaling_factor", "expert_weights_scale", FLOAT32),
        keys.Rows(Key("moe_latent_size", "moe_latent_size").write, _read),
        nextn.LAYERS,
    ),
    defaults={
        **nemotron_h.DEFAULTS,
        "expert_width": lambda config: config.get("moe_latent_size") or config["hidden_size"],
        "intermediate_size": None,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
    },
    rules=(rules.MTP_LEFT_OUT, *EXPERTS, *nemotron_h.RULES),
    vocabulary=tokenizer.bpe,
    takes=nemotron_h.has_experts,
    nextn=NEXTN,
)
