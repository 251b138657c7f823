"""What the families with Mamba 2 layers have in common: tensors, how they are cut, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.keys import ARRAY, Item, Row, Rows, need, written
from quantmill.gguf_io.convert.layout import Tensors
from quantmill.gguf_io.convert.rules import Config, Factors, Part, Rule, Values


def _decay(logarithms: Any) -> Any:
    """A = −exp(A_log), correctly rounded."""
    if isinstance(logarithms, np.ndarray):
        return -np.exp(logarithms.astype(np.float64)).astype(np.float32)
    return -logarithms.double().exp().float()


def _logarithms(decay: Any) -> Any:
    if isinstance(decay, np.ndarray):
        return np.log(-decay.astype(np.float64)).astype(np.float32)
    return (-decay.double()).log().float()


DECAY = Values(_decay, _logarithms)


def rules(groups: str, into: Factors | None = None, out: Factors | None = None) -> tuple[Rule, ...]:
    """groups: key of the size of a group of channels, which are normed together. into, out: factors of the projections
    before and behind."""
    where = r"^(?:model|backbone)\.layers\.(\d+)\.(?:mamba|mixer)\."
    return (
        Rule(rf"{where}in_proj\.weight$", (Part(r"blk.\1.ssm_in.weight", factors=into),)),
        Rule(rf"{where}conv1d\.weight$", (Part(r"blk.\1.ssm_conv1d.weight", squeeze=True),)),
        Rule(rf"{where}conv1d\.bias$", (Part(r"blk.\1.ssm_conv1d.bias"),)),
        Rule(rf"{where}dt_bias$", (Part(r"blk.\1.ssm_dt.bias"),)),
        Rule(rf"{where}A_log$", (Part(r"blk.\1.ssm_a", values=DECAY, columns_of=1),)),
        Rule(rf"{where}D$", (Part(r"blk.\1.ssm_d", columns_of=1),)),
        Rule(rf"{where}norm\.weight$", (Part(r"blk.\1.ssm_norm.weight", columns_of=groups),)),
        Rule(rf"{where}out_proj\.weight$", (Part(r"blk.\1.ssm_out.weight", factors=out),)),
    )


def tensors(
    inner: str, heads: str, n_groups: str, state: str, kernel: str, group: str, normed: str = ""
) -> dict[str, str]:
    """Keys of: channels, heads, groups, state of a channel, width of the convolution, channels of a group; normed: "?"
    where models without a norm exist."""
    mixed = f"{inner}+2*{n_groups}*{state}"
    return {
        "blk.ssm_in.weight": f"{inner}+{mixed}+{heads} hidden_size",
        "blk.ssm_conv1d.weight": f"{mixed} {kernel}",
        "blk.ssm_conv1d.bias": mixed,
        "blk.ssm_dt.bias": heads,
        "blk.ssm_a": f"{heads} 1",
        "blk.ssm_d": f"{heads} 1",
        f"blk.ssm_norm.weight{normed}": f"{n_groups} {group}",
        "blk.ssm_out.weight": f"hidden_size {inner}",
    }


def parts(
    shapes: Mapping[str, str], biased: str, where: Callable[[Config, int], bool] = lambda config, layer: True
) -> tuple[Tensors, Tensors]:
    """`tensors` in these layers. biased: key of whether the convolution has a bias; it has one by default."""
    name = "blk.ssm_conv1d.bias"
    others = {other: shape for other, shape in shapes.items() if other != name}
    return (
        Tensors(others, where),
        Tensors(
            {name: shapes[name]},
            lambda config, layer: config.get(biased) is not False and where(config, layer),
        ),
    )


def positive(*names: str) -> Callable[[Config], int]:
    """The product of some sizes. Raises GGUFError when one is missing."""
    return lambda config: int(np.prod([need(config, name) for name in names]))


def group_size(inner: str, n_groups: str) -> Callable[[Config], int]:
    return lambda config: need(config, inner) // max(need(config, n_groups), 1)


def kv_heads(attends: Callable[[Config, int], bool], kinds: Callable[[Facts, list[int]], Settings]) -> Row:
    """Key and value heads of each layer: 0 says that a layer does not attend, which those that predict further tokens
    do. kinds: settings of those numbers."""

    def write(config: Config) -> Iterable[Item]:
        layers = range(config["num_hidden_layers"])
        number = config["num_key_value_heads"]
        heads = [number if attends(config, layer) else 0 for layer in layers]
        yield "attention.head_count_kv", ARRAY, heads + [number] * config.get("nextn", 0)

    def read(facts: Facts) -> Settings:
        heads = of_layers(facts, "attention.head_count_kv")
        return {
            "num_key_value_heads": max(heads) or facts.need("attention.head_count"),
            **kinds(facts, heads),
        }

    return Rows(write, read)


def of_layers(facts: Facts, key: str) -> list[int]:
    """A number for each layer, be it stored once or for all. Raises GGUFError when it is missing."""
    value = facts.need(key)
    return [value] * facts.n_layers if isinstance(value, int) else [int(n) for n in value][: facts.n_layers]


LONG_CONTEXT = written("context_length", lambda config: 2**20)
