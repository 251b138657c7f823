"""What sees, and what hears, in multimodal models, a file a kind: every module here has TOWERS.

A tower is what a family is for the text part: which tensors there are, what they are called in either world, and which
keys llama.cpp's converter writes (`conversion/*.py: MmprojModel`).
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from quantmill.gguf_io.convert.tower import Tower

_NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))
TOWERS: tuple[Tower, ...] = tuple(
    tower for name in _NAMES for tower in import_module(f"{__name__}.{name}").TOWERS
)
