"""Names of DeepSeek V4's tensors, in checkpoints and as transformers has them in memory, and how they are cut."""

from __future__ import annotations

import re

from quantmill.gguf_io.convert import rules
from quantmill.gguf_io.convert.rules import Config, Part, Rule, half

# In the GGUF -> in a checkpoint, as transformers has it in memory, and as it saves it where that is neither
_ROOT = {
    "token_embd.weight": ("embed.weight", "embed_tokens.weight"),
    "output_norm.weight": ("norm.weight",),
    "output.weight": ("head.weight", "lm_head.weight"),
    **{
        f"output_hc_{part}.weight": (f"hc_head_{part}", f"hc_head.hc_{part}")
        for part in ("fn", "base", "scale")
    },
}
_OF_LAYER = {
    "attn_norm.weight": ("attn_norm.weight", "input_layernorm.weight"),
    "ffn_norm.weight": ("ffn_norm.weight", "post_attention_layernorm.weight"),
    "attn_sinks.weight": ("attn.attn_sink", "self_attn.sinks"),
    "attn_q_a.weight": ("attn.wq_a.weight", "self_attn.q_a_proj.weight"),
    "attn_q_a_norm.weight": ("attn.q_norm.weight", "self_attn.q_a_norm.weight"),
    "attn_q_b.weight": ("attn.wq_b.weight", "self_attn.q_b_proj.weight"),
    "attn_kv.weight": ("attn.wkv.weight", "self_attn.kv_proj.weight"),
    "attn_kv_a_norm.weight": ("attn.kv_norm.weight", "self_attn.kv_norm.weight", "attn.norm.weight"),
    "attn_output_a.weight": ("attn.wo_a.weight", "self_attn.o_a_proj.weight"),
    "attn_output_b.weight": ("attn.wo_b.weight", "self_attn.o_b_proj.weight"),
    "ffn_gate_inp.weight": ("ffn.gate.weight", "mlp.gate.weight"),
    "exp_probs_b.bias": ("ffn.gate.bias", "mlp.gate.e_score_correction.bias"),
    "indexer.attn_q_b.weight": ("attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight"),
    "indexer.proj.weight": (
        "attn.indexer.weights_proj.weight",
        "self_attn.compressor.indexer.scorer.weights_proj.weight",
    ),
    **{
        f"{ours}compressor_{part}.weight": (f"{stored}compressor.{name}", f"{loaded}{other}")
        for ours, stored, loaded in (
            ("attn_", "attn.", "self_attn.compressor."),
            ("indexer_", "attn.indexer.", "self_attn.compressor.indexer."),
        )
        for part, name, other in (
            ("kv", "wkv.weight", "kv_proj.weight"),
            ("gate", "wgate.weight", "gate_proj.weight"),
            ("ape", "ape", "position_bias"),
            ("norm", "norm.weight", "kv_norm.weight"),
        )
    },
    **{
        f"ffn_{part}_shexp.weight": (
            f"ffn.shared_experts.{name}.weight",
            f"mlp.shared_experts.{part}_proj.weight",
        )
        for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    },
    **{
        f"hc_{where}_{part}.weight": (f"hc_{where}_{part}", f"{where}_hc.{part}")
        for where in ("attn", "ffn")
        for part in ("fn", "base", "scale")
    },
}
_WHERE = r"^(?:model\.)?layers\.(\d+)\."


def _is_unused(config: Config, match: re.Match[str]) -> bool:
    """Where a table chooses the experts, there is a bias of the choice all the same."""
    return int(match[1]) < config["num_hash_layers"]


def _renamed(where: str, ours: str, names: tuple[str, ...]) -> Rule:
    either = "|".join(name.replace(".", r"\.") for name in names)
    return Rule(f"{where}(?:{either})$", (Part(ours),))


RULES = (
    rules.MTP_LEFT_OUT,
    Rule(r"^(aligner\.|image_)"),  # of what sees
    Rule(rf"{_WHERE}ffn\.gate\.bias$", when=_is_unused),
    *(_renamed(r"^(?:model\.)?", ours, names) for ours, names in _ROOT.items()),
    *(_renamed(_WHERE, rf"blk.\1.{ours}", names) for ours, names in _OF_LAYER.items()),
    Rule(rf"{_WHERE}ffn\.gate\.bias_vl$", (Part(r"blk.\1.exp_probs_b_vl.bias"),)),
    Rule(
        rf"{_WHERE}(?:ffn|mlp)\.gate\.tid2eid$",
        (Part(r"blk.\1.ffn_gate_tid2eid.weight", indices="n_routed_experts"),),
    ),
    *(
        Rule(
            rf"{_WHERE}ffn\.experts\.(?P<expert>\d+)\.{name}\.weight$",
            (Part(rf"blk.\1.ffn_{part}_exps.weight"),),
            order=order,
        )
        for order, (part, name) in enumerate((("gate", "w1"), ("down", "w2"), ("up", "w3")))
    ),
    Rule(rf"{_WHERE}mlp\.experts\.down_proj$", (Part(r"blk.\1.ffn_down_exps.weight"),)),
    Rule(
        rf"{_WHERE}mlp\.experts\.gate_up_proj$",
        (
            Part(r"blk.\1.ffn_gate_exps.weight", rows=half(0)),
            Part(r"blk.\1.ffn_up_exps.weight", rows=half(1)),
        ),
    ),
)
