"""Checkpoints that are spoiled, and how they are refused."""

from __future__ import annotations

import pytest

from quantmill.gguf_io.convert import open_checkpoint
from quantmill.gguf_io.errors import GGUFError
from tests.support.convert_models import tensors, write_shards


def refused(directory, message, **options):
    with pytest.raises(GGUFError, match=message) as error:
        open_checkpoint(directory, **options)
    assert "\n" not in str(error.value)


def rewrite(directory, change, name="qwen3-moe"):
    found = tensors(name)
    change(found)
    write_shards(directory, found)
