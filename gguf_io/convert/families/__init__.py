"""The families quantmill converts and runs, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from quantmill.gguf_io.convert.facts import Facts
from quantmill.gguf_io.convert.families import (
    arcee,
    cohere2,
    deepseek2,
    deepseek3,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone4,
    exaone_moe,
    gemma2,
    gemma3,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granite,
    granite_moe,
    lfm2,
    lfm2_moe,
    llama,
    minimax_m2,
    ministral3,
    mistral,
    mistral3,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    seed_oss,
    smollm3,
    starcoder2,
)
from quantmill.gguf_io.convert.family import Family
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

FAMILIES = tuple(
    module.FAMILY
    for module in (
        arcee,
        cohere2,
        deepseek2,
        deepseek3,
        dots1,
        ernie4_5,
        ernie4_5_moe,
        exaone4,
        exaone_moe,
        gemma2,
        gemma3,
        glm4,
        glm4_moe,
        glm4_moe_lite,
        gpt_oss,
        granite,
        granite_moe,
        lfm2,
        lfm2_moe,
        llama,
        minimax_m2,
        ministral3,
        mistral,
        mistral3,
        mixtral,
        olmo2,
        olmo3,
        olmoe,
        phi3,
        qwen2,
        qwen2_moe,
        qwen3,
        qwen3_5,
        qwen3_5_moe,
        qwen3_moe,
        qwen3_next,
        seed_oss,
        smollm3,
        starcoder2,
    )
)

SUPPORTED = tuple(sorted(name for family in FAMILIES for name in family.classes))
RUNNABLE = tuple(sorted({family.name for family in FAMILIES}))


def family_of(config: Config) -> Family:
    """The family of a config.json. Raises GGUFError for an architecture that is not in the table."""
    inner = config.get("text_config")
    names = (inner.get("architectures") if isinstance(inner, Mapping) else None) or config.get(
        "architectures"
    )
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise GGUFError("config.json names no architecture (key 'architectures')")
    for family in FAMILIES:
        if names[0] in family.classes:
            return family
    raise GGUFError(
        f"architecture {names[0]} is not supported. Supported: {', '.join(SUPPORTED)}. "
        "Convert it with llama.cpp's convert_hf_to_gguf.py and give quantmill the GGUF."
    )


def family_of_gguf(facts: Facts) -> Family | None:
    """The family that runs a GGUF; None where no family has its architecture."""
    return next(
        (family for family in FAMILIES if family.name == facts.architecture and family.is_this(facts)), None
    )
