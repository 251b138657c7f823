"""What the Hugging Face configuration classes fill in where config.json is silent, as far as it is read."""

from __future__ import annotations

from collections.abc import Callable

from quantmill.gguf_io.convert.hyperparameters import head_dim
from quantmill.gguf_io.convert.rules import Config


def alternating(period: int) -> Callable[[Config], list[str]]:
    """Every period-th layer attends to everything, the others to the window; the config may name the period."""

    def layers(config: Config) -> list[str]:
        every = config.get("sliding_window_pattern") or period
        if isinstance(every, str):
            local = [every[i % len(every)] == "L" for i in range(config["num_hidden_layers"])]
        else:
            local = [bool((i + 1) % every) for i in range(config["num_hidden_layers"])]
        return ["sliding_attention" if is_local else "full_attention" for is_local in local]

    return layers


LLAMA = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
LLAMA_WITH_HEADS = {**LLAMA, "head_dim": head_dim}
MISTRAL = {**LLAMA_WITH_HEADS, "max_position_embeddings": 131072, "num_key_value_heads": 8}
MIXTRAL = {
    "max_position_embeddings": 131072,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
QWEN = {**LLAMA, "max_position_embeddings": 32768, "num_key_value_heads": 32}
GEMMA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
GEMMA3 = {
    **GEMMA,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,  # left out by the published 4B
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "vocab_size": 262208,
}
OLMO = {**LLAMA, "rms_norm_eps": 1e-5}
DEEPSEEK = {
    **LLAMA,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 1407,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "head_dim": lambda config: config["qk_rope_head_dim"],
    "routed_scaling_factor": 1.0,
    "v_head_dim": 128,
}
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}
GPT_OSS = {
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "rope_parameters": GPT_OSS_ROPE,
    "sliding_window": 128,
}
