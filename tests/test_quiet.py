"""Models that several threads build at once: what the process has for it stays as it was."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from quantmill.models import fill
from quantmill.models.fill import of_config, skeleton
from quantmill.models.quiet import quiet_transformers

SETTINGS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def test_threads_build_one_after_the_other(monkeypatch):
    def slow(config, dtype):  # so that all would be inside at once
        time.sleep(0.05)
        return of_config(config, dtype)

    monkeypatch.setattr(fill, "of_config", slow)

    def build(_):
        with quiet_transformers():
            return skeleton("llama", SETTINGS, torch.float32)

    before = nn.Module.register_parameter
    with ThreadPoolExecutor(4) as threads:
        built = list(threads.map(build, range(8)))
    assert nn.Module.register_parameter is before
    assert {parameter.device.type for model in built for parameter in model.parameters()} == {"meta"}
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_kernels_that_are_missing_are_not_complained_of():
    with quiet_transformers():
        pass
    log = logging.getLogger("transformers.models.qwen3_5.modeling_qwen3_5")
    useless = (
        "`chunk_kda` is falling back to its reference PyTorch implementation because `x` is not installed."
    )
    handlers = logging.getLogger("transformers").handlers
    assert handlers
    for text, shown in ((useless, False), ("the weights are damaged", True)):
        record = log.makeRecord(log.name, logging.WARNING, "", 0, text, (), None)
        assert [bool(handler.filter(record)) for handler in handlers] == [shown] * len(handlers)
