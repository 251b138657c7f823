"""What a kind of encoder of images is: its tensors and keys, and what the kinds have in common (towers/)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantmill.gguf_io.convert.keys import ARRAY, BOOL, STRING, Item, Key, Row, Rows, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

DEEP = "deepstack_visual_indexes"
COLOURS = ("image_mean", "image_std")
Change = Callable[[np.ndarray, Config], np.ndarray]


def as_asked(asked: str) -> str:
    return asked


def always_f32(asked: str) -> str:
    return "F32"


def always_f16(asked: str) -> str:
    return "F16"


def f16_where_asked(asked: str) -> str:
    return "F16" if asked == "F16" else "F32"


@dataclass(frozen=True)
class Tensor:
    """name: Hugging Face's, behind the tower's prefix, "{}" for a layer's number; target: GGUF's. shape: as layout.py
    has it, Hugging Face order. numbers: the layers there are, by their numbers in either name; None: it is in none.

    type: what a tensor of several dimensions becomes where a type is asked for. values: what becomes of its values.
    becomes: its shape in the file, where that is another.
    """

    name: str
    target: str
    shape: str
    numbers: Callable[[Config], Iterable[tuple[int, int]]] | None = None
    type: Callable[[str], str] = as_asked
    values: Change | None = None
    becomes: str = ""


@dataclass(frozen=True)
class Tower:
    """classes: config.json's architectures[0]. prefix: a regular expression for what stands before the names of its
    tensors. left_out: one for those that llama.cpp does not use. defaults: as a family's. hears: whether it is for
    models with an audio_config, whose settings then begin with audio_.

    outer: settings that stand beside vision_config, prepared: those of preprocessor_config.json, that it needs; here
    they begin with outer_ and prepared_. fixed: settings that llama.cpp's converter takes to be these in every model.
    only: those that a model may not have otherwise."""

    classes: tuple[str, ...]
    prefix: str
    tensors: tuple[Tensor, ...]
    keys: tuple[Row, ...]
    defaults: Mapping[str, Any]
    left_out: str = field(default="(?!)")
    hears: bool = False
    outer: tuple[str, ...] = ()
    prepared: tuple[str, ...] = COLOURS
    fixed: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Raises GGUFError for what must be a positive whole number and is none, and for what llama.cpp has not."""
        plain = {key: value for key, value in self.defaults.items() if not callable(value)}
        config = plain | {key: value for key, value in given.items() if value is not None} | dict(self.fixed)
        for key, value in self.defaults.items():
            if callable(value):
                config.setdefault(key, value(config))
            whole = type(config[key]) is int and config[key] > 0
            if not whole and not isinstance(value, float | bool | str | list) and key != DEEP:
                raise GGUFError(f"{_place(key)} must be a positive whole number, not {config[key]!r}")
        for key, wanted in self.only.items():
            if config.get(key, wanted) != wanted:
                raise GGUFError(f"{_place(key)} is {config[key]!r}; llama.cpp has {wanted} only")
        return config


def _place(key: str) -> str:
    """Where a user finds a setting."""
    part, _, name = key.partition("_")
    places = {
        "audio": f"config.json: {name} of audio_config",
        "outer": f"config.json: {name}",
        "prepared": f"preprocessor_config.json: {name}",
    }
    return places.get(part, f"config.json: {key} of vision_config")


def of_all_layers(config: Config) -> Iterable[tuple[int, int]]:
    return ((layer, layer) for layer in range(config["num_hidden_layers"]))


def linear(
    name: str, target: str, shape: str, numbers: Any = None, values: Change | None = None
) -> tuple[Tensor, ...]:
    """A matrix and its bias, or a norm and its bias. values: what becomes of those of both."""
    return (
        Tensor(f"{name}.weight", f"{target}.weight", shape, numbers, values=values),
        Tensor(f"{name}.bias", f"{target}.bias", shape.split()[0], numbers, values=values),
    )


def linear_of_layers(*rows: tuple[str, str, str]) -> tuple[Tensor, ...]:
    return tuple(tensor for row in rows for tensor in linear(*row, of_all_layers))


def one_of_two(key: str, usual: tuple[int, int], which: int) -> Callable[[Config], int]:
    """One of the two whole numbers that a setting holds."""

    def number(config: Config) -> int:
        found = config.get(key, list(usual))
        if not (isinstance(found, list) and len(found) == 2 and all(type(n) is int and n > 0 for n in found)):
            raise GGUFError(f"{_place(key)} must be two numbers, not {found!r}")
        return int(found[which])

    return number


def numbers_of_colours(key: str) -> Rows:
    """A number for each colour, from preprocessor_config.json."""

    def write(config: Config) -> Iterable[Item]:
        found = config.get(f"prepared_{key}")
        if not (isinstance(found, list) and found and all(type(one) in (int, float) for one in found)):
            raise GGUFError(
                f"preprocessor_config.json: {key} must be a list of numbers, not {found!r}; fetch the file again"
            )
        yield f"vision.{key}", ARRAY, found

    return Rows(write)


def part(which: int, of: int) -> Change:
    """One of several matrices or biases that lie under each other."""
    return lambda values, config: np.split(values, of)[which]


def plane(which: int) -> Change:
    """What a convolution over two images in a row does to one of them."""
    return lambda values, config: values[:, :, which]


def plus_one(values: np.ndarray, config: Config) -> np.ndarray:
    return values + np.float32(1)


def as_pictures(values: np.ndarray, config: Config) -> np.ndarray:
    """Rows of the pixels of a patch, each with its colours, as a picture for each colour."""
    return values.reshape(len(values), config["patch_size"], config["patch_size"], -1).transpose(0, 3, 1, 2)


def patches_in_rows(name: str) -> Tensor:
    return Tensor(
        name,
        "v.patch_embd.weight",
        "hidden_size patch_size*patch_size*3",
        type=f16_where_asked,
        values=as_pictures,
        becomes="hidden_size 3 patch_size patch_size",
    )


def two_images(name: str, colours: str) -> tuple[Tensor, ...]:
    """A convolution over two images in a row as one for each. colours: the key of their number."""
    return tuple(
        Tensor(
            name,
            f"v.patch_embd.weight{end}",
            f"hidden_size {colours} 2 patch_size patch_size",
            type=f16_where_asked,
            values=plane(i),
            becomes=f"hidden_size {colours} patch_size patch_size",
        )
        for i, end in enumerate(("", ".1"))
    )


def positions(name: str, shape: str, becomes: str = "", values: Change | None = None) -> Tensor:
    return Tensor(name, "v.position_embd.weight", shape, type=always_f32, values=values, becomes=becomes)


_SIGLIP = "encoder.layers.{}."
SIGLIP_LAYERS = linear_of_layers(
    (f"{_SIGLIP}layer_norm1", "v.blk.{}.ln1", "hidden_size"),
    (f"{_SIGLIP}layer_norm2", "v.blk.{}.ln2", "hidden_size"),
    (f"{_SIGLIP}self_attn.q_proj", "v.blk.{}.attn_q", "hidden_size hidden_size"),
    (f"{_SIGLIP}self_attn.k_proj", "v.blk.{}.attn_k", "hidden_size hidden_size"),
    (f"{_SIGLIP}self_attn.v_proj", "v.blk.{}.attn_v", "hidden_size hidden_size"),
    (f"{_SIGLIP}self_attn.out_proj", "v.blk.{}.attn_out", "hidden_size hidden_size"),
    (f"{_SIGLIP}mlp.fc1", "v.blk.{}.ffn_up", "intermediate_size hidden_size"),
    (f"{_SIGLIP}mlp.fc2", "v.blk.{}.ffn_down", "hidden_size intermediate_size"),
)

SIZES: tuple[Row, ...] = (
    written("has_vision_encoder", lambda config: True, BOOL),
    Key("text_size", "vision.projection_dim", needed=True),
    Key("image_size", "vision.image_size", needed=True),
    Key("patch_size", "vision.patch_size", needed=True),
    Key("hidden_size", "vision.embedding_length", needed=True),
    Key("intermediate_size", "vision.feed_forward_length", needed=True),
    Key("num_hidden_layers", "vision.block_count", needed=True),
    Key("num_attention_heads", "vision.attention.head_count", needed=True),
    *(numbers_of_colours(key) for key in COLOURS),
)
USE_GELU = written("use_gelu", lambda config: True, BOOL)


def projector_type(name: str) -> Rows:
    return written("projector_type", lambda config: name, STRING)
