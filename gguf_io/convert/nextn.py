"""Layers behind the last that predict further tokens (NextN, MTP): how many there are, what they are called, their
tensors beside those of an ordinary layer.

llama.cpp numbers them on behind the model's own layers (`conversion/*.py`: the classes with supports_mtp_export).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantmill.gguf_io.convert import layout
from quantmill.gguf_io.convert.keys import Rows, written
from quantmill.gguf_io.convert.layout import Expected, Tensors
from quantmill.gguf_io.convert.rules import Config, Part, Rule, Values
from quantmill.gguf_io.errors import GGUFError

# What a checkpoint's later layers are wanted for.
WITH, WITHOUT, ONLY = "with", "without", "only"
CHOICES = (WITH, WITHOUT, ONLY)
BESIDE = {
    "blk.nextn.eh_proj.weight": "hidden_size 2*hidden_size",
    "blk.nextn.enorm.weight": "hidden_size",
    "blk.nextn.hnorm.weight": "hidden_size",
    "blk.nextn.embed_tokens.weight?": "vocab_size hidden_size",
    "blk.nextn.shared_head_head.weight?": "vocab_size hidden_size",
}
# Of `mtp.`, the names outside its layers -> the names in the first layer behind the last
OUTSIDE = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}
_WHERE = r"^model\.layers\.(\d+)\."


@dataclass(frozen=True)
class Nextn:
    """key: config.json's number of such layers. layer: the tensors of one that an ordinary layer has too. norms: how
    the values of norms change. draft: whether llama.cpp runs them. final: what the norm behind them is called. names:
    how names in a checkpoint begin → how they would as those of one layer, where it has one in parts; quantmill runs
    none such."""

    key: str
    layer: Mapping[str, str]
    norms: Values | None = None
    draft: bool = True
    final: str = "nextn.shared_head_norm"
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule(rf"{_WHERE}(eh_proj|embed_tokens)\.weight$", (Part(r"blk.\1.nextn.\2.weight"),)),
            Rule(rf"{_WHERE}([eh]norm)\.weight$", (Part(r"blk.\1.nextn.\2.weight", values=self.norms),)),
            Rule(
                rf"{_WHERE}shared_head\.norm\.weight$",
                (Part(rf"blk.\1.{self.final}.weight", values=self.norms),),
            ),
            Rule(rf"{_WHERE}shared_head\.head\.weight$", (Part(r"blk.\1.nextn.shared_head_head.weight"),)),
        )

    def count(self, config: Config, names: Iterable[str]) -> int:
        """How many there are: what config.json says, where the checkpoint holds any; else those that are seen."""
        n_layers = config["num_hidden_layers"]
        where = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.")
        found = (where.match(self.renamed(name, n_layers)) for name in names)
        seen = {int(match[1]) for match in found if match and int(match[1]) >= n_layers}
        return config.get(self.key) or max(seen) + 1 - n_layers if seen else 0

    def renamed(self, name: str, n_layers: int) -> str:
        """A name under `mtp.` as one of a layer behind the last, whose final norm has one name."""
        part = next((part for part in self.names if name.startswith(part)), None)
        if part is not None:
            name = self.names[part] + name.removeprefix(part)
        match = re.match(r"(?:model\.)?mtp\.(?:layers\.(\d+)\.(.+)|(\w+)\.(\w+)$)", name)
        if match and match[1] is None:
            return f"model.layers.{n_layers}.{OUTSIDE.get(match[3], match[3])}.{match[4]}"
        if match:
            name = f"model.layers.{n_layers + int(match[1])}.{match[2]}"
        later = re.match(rf"{_WHERE}final_layernorm\.", name)
        if later and int(later[1]) >= n_layers:
            return name.replace("final_layernorm", "shared_head.norm")
        return name

    def expected(self, config: Config, place: int) -> dict[str, Expected]:
        """place: behind those of the family's own groups of tensors."""
        first = config["num_hidden_layers"]
        layers = range(first, first + config["nextn"])
        shapes = {**self.layer, **BESIDE, f"blk.{self.final}.weight?": "hidden_size"}
        return layout.of_layers(Tensors(shapes), config, place, layers)


LAYERS = Rows(written("nextn_predict_layers", lambda config: config.get("nextn") or None).write)


def take(
    directory: Path, layers: Nextn | None, config: dict[str, Any], names: Sequence[str], later: str
) -> Iterator[str]:
    """Into config: how many layers that predict further tokens are taken along. A warning where they cannot be."""
    assert later in CHOICES
    count = layers.count(config, names) if layers else 0
    if later == ONLY and not count:
        unknown = _first_later(config, names)
        reason = "has no layers that predict further tokens (NextN, MTP)"
        if unknown:
            reason = f"{unknown} and its like predict further tokens (NextN, MTP), of which quantmill makes no draft"
        raise GGUFError(f"{directory}: {reason}; leave out --nextn-only")
    if later == ONLY and layers and not layers.draft:
        raise GGUFError(
            f"{directory}: llama.cpp does not run the layers that predict further tokens (NextN, MTP) of this "
            "architecture alone; leave out --nextn-only"
        )
    config["nextn"] = 0 if later == WITHOUT else count
    config["nextn_only"] = later == ONLY
    if count or later == WITHOUT:
        return
    name = _first_later(config, names)
    if name:
        yield f"{name} and its like predict further tokens (NextN, MTP); they are left out"


def _first_later(config: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first tensor of a layer that predicts further tokens."""
    for name in names:
        layer = re.search(r"\blayers\.(\d+)\.", name)
        if re.search(r"\bmtp[._]", name) or (layer and int(layer[1]) >= config["num_hidden_layers"]):
            return name
    return None
