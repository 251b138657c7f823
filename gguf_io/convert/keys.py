"""Settings, both ways: each row of a family's table stands between keys of config.json and keys of GGUF metadata.

`write` makes GGUF entries of a completed configuration (config.py), `read` makes transformers' settings of what a GGUF
says (facts.py). Most rows are a `Key`; where a setting takes more than one key on either side, or follows from others,
`Rows` holds two functions. The order of the rows is that in the file, llama.cpp's converter's
(`conversion/*.py: set_gguf_parameters`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gguf import ExpertGatingFuncType, GGUFValue, GGUFValueType, GGUFWriter

from quantmill.gguf_io.convert.facts import Facts, Settings
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

UINT32, FLOAT32, BOOL = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.BOOL
STRING, ARRAY = GGUFValueType.STRING, GGUFValueType.ARRAY

# Key without the architecture's prefix (keys of general.* whole), type, value
Item = tuple[str, GGUFValueType, Any]


class Wide(list[int]):
    """An array of numbers of 64 bits, where others have 32."""


class Whole(str):
    """A key before which no architecture is put."""


class Row(Protocol):
    @property
    def write(self) -> Callable[[Config], Iterable[Item]]: ...

    @property
    def read(self) -> Callable[[Facts], Settings]: ...


@dataclass(frozen=True)
class Key:
    """hf: key of config.json, or several in order of preference of which the first is written back. gguf: without
    prefix. needed: an error where config.json and the defaults have none. nonzero: 0 is not written either."""

    hf: str | tuple[str, ...]
    gguf: str
    type: GGUFValueType = UINT32
    needed: bool = False
    nonzero: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.hf,) if isinstance(self.hf, str) else self.hf

    def write(self, config: Config) -> Iterable[Item]:
        name = next((name for name in self.names if config.get(name) is not None), None)
        if name is None:
            if self.needed:
                need(config, self.names[0])
        elif config[name] or not self.nonzero:
            yield self.gguf, self.type, checked(name, config[name], self.type)

    def read(self, facts: Facts) -> Settings:
        value = facts.get(self.gguf)
        return {} if value is None else {self.names[0]: value}


def _no_items(config: Config) -> Iterable[Item]:
    return ()


def _no_settings(facts: Facts) -> Settings:
    return {}


@dataclass(frozen=True)
class Rows:
    write: Callable[[Config], Iterable[Item]] = _no_items
    read: Callable[[Facts], Settings] = _no_settings


def written(gguf: str, value: Callable[[Config], Any], type: GGUFValueType = UINT32) -> Rows:
    """A GGUF key that follows from other settings; not written where the value is None."""

    def write(config: Config) -> Iterable[Item]:
        found = value(config)
        if found is not None:
            yield gguf, type, found

    return Rows(write)


def add(writer: GGUFWriter, arch: str, items: Iterable[Item]) -> None:
    """What a later row says of a key counts, under the earlier one's place."""
    for key, type, value in items:
        sub_type = GGUFValueType.UINT64 if isinstance(value, Wide) else None
        whole = isinstance(key, Whole) or key.startswith("general.")
        writer.kv_data[0][str(key) if whole else f"{arch}.{key}"] = GGUFValue(value, type, sub_type)


def need(config: Config, key: str) -> Any:
    """config[key]. Raises GGUFError when the key is missing or null."""
    if config.get(key) is None:
        raise GGUFError(f"config.json: key {key!r} is missing; the architecture needs it")
    return config[key]


def only(config: Config, settings: Mapping[str, Any]) -> None:
    """Raises GGUFError where a setting is other than the one value that llama.cpp's model has."""
    for key, wanted in settings.items():
        if config.get(key, wanted) != wanted:
            raise GGUFError(f"config.json: {key} is {config[key]!r}; llama.cpp has {wanted} only")


def checked(name: str, value: Any, type: GGUFValueType) -> Any:
    """The value. Raises GGUFError when GGUF cannot hold it as `type`."""
    if type is BOOL:
        if not isinstance(value, bool):
            raise GGUFError(f"config.json: key {name!r} must be true or false, not {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise GGUFError(f"config.json: key {name!r} must be a number, not {value!r}")
    if type is UINT32 and not (isinstance(value, int) and 0 <= value < 2**32):
        raise GGUFError(f"config.json: key {name!r} must be a whole number from 0 on, not {value!r}")
    if type is FLOAT32 and not abs(value) < 2**128:
        raise GGUFError(f"config.json: key {name!r} must be a finite number, not {value!r}")
    return value


def head_dim(config: Config) -> int:
    return config.get("head_dim") or need(config, "hidden_size") // need(config, "num_attention_heads")


def _one_for_all(hf: str, gguf: str) -> Callable[[Facts], Settings]:
    """A number that a file may hold once for each layer."""

    def read(facts: Facts) -> Settings:
        value = facts.get(gguf)
        if value is None or isinstance(value, int):
            return {} if value is None else {hf: value}
        if len(set(value)) != 1:
            raise GGUFError(
                f"{facts.architecture}.{gguf} differs between layers, which transformers' model cannot express"
            )
        return {hf: int(value[0])}

    return read


def _head_sizes(config: Config) -> Iterable[Item]:
    if config.get("head_dim") is not None:
        size = checked("head_dim", config["head_dim"], UINT32)
        yield "attention.key_length", UINT32, size
        yield "attention.value_length", UINT32, size


GATING = {"sigmoid": ExpertGatingFuncType.SIGMOID, "softmax": ExpertGatingFuncType.SOFTMAX}


def _gating(config: Config) -> Iterable[Item]:
    gating = config.get("scoring_func")
    if gating is None:
        return
    if not isinstance(gating, str) or gating not in GATING:
        raise GGUFError(f"config.json: scoring_func {gating!r}; known are {', '.join(GATING)}")
    yield "expert_gating_func", UINT32, GATING[gating]


BLOCKS = Rows(
    lambda config: [("block_count", UINT32, config["num_hidden_layers"] + config.get("nextn", 0))],
    lambda facts: {"num_hidden_layers": facts.n_layers},
)
CONTEXT = Key(("max_position_embeddings", "n_positions"), "context_length")
WIDTH = Key("hidden_size", "embedding_length")
INNER = Rows(
    Key(("dense_intermediate_size", "intermediate_size"), "feed_forward_length").write,
    _one_for_all("intermediate_size", "feed_forward_length"),
)
HEADS = Key("num_attention_heads", "attention.head_count")
KV_HEADS = Rows(
    Key("num_key_value_heads", "attention.head_count_kv").write,
    _one_for_all("num_key_value_heads", "attention.head_count_kv"),
)
SIZES = (BLOCKS, CONTEXT, WIDTH, INNER, HEADS, KV_HEADS)
RMS_NORM = Key(("rms_norm_eps", "norm_eps"), "attention.layer_norm_rms_epsilon", FLOAT32)
GATE = Rows(_gating)
HEAD_SIZES = Rows(_head_sizes, Key("head_dim", "attention.key_length").read)
FILE_TYPE = written("general.file_type", lambda config: config["file_type"])
VOCABULARY_SIZE = written("vocab_size", lambda config: config["vocab_size"])
WINDOW = Key("sliding_window", "attention.sliding_window", needed=True)


def experts(count: str) -> tuple[Row, Row]:
    """count: what the configuration class calls the number of experts."""
    return (
        Key(count, "expert_count"),
        Key(("num_experts_per_tok", "num_experts_per_token"), "expert_used_count"),
    )


def _write_dense(config: Config) -> Iterable[Item]:
    kinds = need(config, "mlp_layer_types")
    first = next((layer for layer, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    yield "leading_dense_block_count", UINT32, first


def read_dense(facts: Facts) -> Settings:
    """mlp_layer_types: sparse are the layers that have a router."""
    layers = range(facts.n_layers)
    return {
        "mlp_layer_types": [
            "sparse" if facts.has(f"blk.{layer}.ffn_gate_inp.weight") else "dense" for layer in layers
        ]
    }


LEADING_DENSE = Rows(_write_dense, read_dense)
EXPERT_GROUPS = (Key("n_group", "expert_group_count"), Key("topk_group", "expert_group_used_count"))


def every(facts: Facts, period: int) -> list[str]:
    """Layer kinds: every period-th layer is full attention, the others slide; a stored pattern wins."""
    pattern = facts.get("attention.sliding_window_pattern")
    if pattern is None or isinstance(pattern, int):
        period = pattern or period
        pattern = [(i + 1) % period != 0 for i in range(facts.n_layers)]
    return ["sliding_attention" if slides else "full_attention" for slides in pattern[: facts.n_layers]]


def layers_every(period: int) -> Rows:
    """Which layers slide is in llama.cpp's code, not in the file: all but every period-th."""
    return Rows(read=lambda facts: {"layer_types": every(facts, period)})


def write_pattern(config: Config) -> Iterable[Item]:
    """Which layers attend to the window only, where there is one."""
    if config.get("sliding_window") is not None:
        slides = [kind == "sliding_attention" for kind in need(config, "layer_types")]
        yield "attention.sliding_window_pattern", ARRAY, slides


def alternating(period: int) -> Callable[[Config], list[str]]:
    """What classes fill in: every period-th layer attends to everything, the others to the window; the config may
    name the period, as a number or as letters (LLLG)."""

    def layers(config: Config) -> list[str]:
        pattern, n_layers = config.get("sliding_window_pattern") or period, config["num_hidden_layers"]
        if isinstance(pattern, str):
            local = [pattern[i % len(pattern)] == "L" for i in range(n_layers)]
        else:
            local = [bool((i + 1) % pattern) for i in range(n_layers)]
        return ["sliding_attention" if is_local else "full_attention" for is_local in local]

    return layers
