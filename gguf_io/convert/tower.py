"""What a kind of encoder of images is: its tensors and keys, and what the kinds have in common (towers.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantmill.gguf_io.convert.keys import ARRAY, BOOL, STRING, Item, Key, Row, Rows, written
from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.errors import GGUFError

DEEP = "deepstack_visual_indexes"


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

    type: what a tensor of several dimensions becomes where a type is asked for. plane: of the third dimension only
    this part is taken. plus: added to every value. patches: a row holds the pixels of a patch, each with its colours,
    and becomes a picture for each colour. values: a change of all of them. squeeze: dimensions of 1 are dropped.
    """

    name: str
    target: str
    shape: str
    numbers: Callable[[Config], Iterable[tuple[int, int]]] | None = None
    type: Callable[[str], str] = as_asked
    plane: int | None = None
    plus: float = 0.0
    patches: bool = False
    values: Callable[[np.ndarray], np.ndarray] | None = None
    squeeze: bool = False


@dataclass(frozen=True)
class Tower:
    """classes: config.json's architectures[0]. prefix: a regular expression for what stands before the names of its
    tensors. left_out: one for those that llama.cpp does not use. defaults: as a family's. hears: whether it is for
    models with an audio_config, whose settings then begin with audio_."""

    classes: tuple[str, ...]
    prefix: str
    tensors: tuple[Tensor, ...]
    keys: tuple[Row, ...]
    defaults: Mapping[str, Any]
    left_out: str = field(default="(?!)")
    hears: bool = False

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Raises GGUFError for what must be a positive whole number and is none."""
        plain = {key: value for key, value in self.defaults.items() if not callable(value)}
        config = plain | {key: value for key, value in given.items() if value is not None}
        for key, value in self.defaults.items():
            if callable(value):
                config.setdefault(key, value(config))
            whole = type(config[key]) is int and config[key] > 0
            if not whole and not isinstance(value, float | bool) and key != DEEP:
                place, _, name = key.partition("_") if key.startswith("audio_") else ("vision", "", key)
                raise GGUFError(
                    f"config.json: {name} of {place}_config must be a positive whole number, not {config[key]!r}"
                )
        return config


def of_all_layers(config: Config) -> Iterable[tuple[int, int]]:
    return ((layer, layer) for layer in range(config["num_hidden_layers"]))


def linear(name: str, target: str, shape: str, numbers: Any = None) -> tuple[Tensor, ...]:
    """A matrix and its bias, or a norm and its bias."""
    return (
        Tensor(f"{name}.weight", f"{target}.weight", shape, numbers),
        Tensor(f"{name}.bias", f"{target}.bias", shape.split()[0], numbers),
    )


def linear_of_layers(*rows: tuple[str, str, str]) -> tuple[Tensor, ...]:
    return tuple(tensor for row in rows for tensor in linear(*row, of_all_layers))


def numbers_of_colours(key: str) -> Rows:
    """A number for each colour, from preprocessor_config.json."""

    def write(config: Config) -> Iterable[Item]:
        found = config.get(key)
        if not (isinstance(found, list) and found and all(type(one) in (int, float) for one in found)):
            raise GGUFError(
                f"preprocessor_config.json: {key} must be a list of numbers, not {found!r}; fetch the file again"
            )
        yield f"vision.{key}", ARRAY, found

    return Rows(write)


SIZES = (
    written("has_vision_encoder", lambda config: True, BOOL),
    Key("text_size", "vision.projection_dim", needed=True),
    Key("image_size", "vision.image_size", needed=True),
    Key("patch_size", "vision.patch_size", needed=True),
    Key("hidden_size", "vision.embedding_length", needed=True),
    Key("intermediate_size", "vision.feed_forward_length", needed=True),
    Key("num_hidden_layers", "vision.block_count", needed=True),
    Key("num_attention_heads", "vision.attention.head_count", needed=True),
    numbers_of_colours("image_mean"),
    numbers_of_colours("image_std"),
)
USE_GELU = written("use_gelu", lambda config: True, BOOL)


def projector_type(name: str) -> Rows:
    return written("projector_type", lambda config: name, STRING)
