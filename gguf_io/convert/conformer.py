"""What the parts of Gemma 3n and Gemma 4 that hear have in common: two convolutions over sound, and layers behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from quantmill.gguf_io.convert.rules import Config
from quantmill.gguf_io.convert.tower import Tensor, always_f32, one_of_two


def of_layers(key: str) -> Callable[[Config], Iterable[tuple[int, int]]]:
    """key: the setting that says how many there are."""
    return lambda config: ((layer, layer) for layer in range(config[key]))


def convolutions(layer: str) -> tuple[Tensor, ...]:
    """layer: what they are called before their number."""
    return tuple(
        Tensor(
            f"audio_tower.subsample_conv_projection.{layer}{i}.{here}.weight",
            f"a.conv1d.{i}.{there}weight",
            shape,
            type=always_f32,
        )
        for i, into in enumerate(("1", "audio_channels_0"))
        for here, there, shape in (
            ("conv", "", f"audio_channels_{i} {into} 3 3"),
            ("norm", "norm.", f"audio_channels_{i}"),
        )
    )


def sizes(key: str) -> Mapping[str, Callable[[Config], int]]:
    """What follows from the setting of both convolutions' channels."""
    return {
        "audio_channels_0": one_of_two(key, (128, 32), 0),
        "audio_channels_1": one_of_two(key, (128, 32), 1),
        "audio_flat": lambda config: config["audio_channels_1"] * (config["audio_input_feat_size"] // 4),
    }
