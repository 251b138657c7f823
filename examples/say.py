"""Load a GGUF in stock llama.cpp (xllamacpp) and let it go on with a text: `python say.py model.gguf "Once upon"`."""

from __future__ import annotations

import sys

import xllamacpp


def go_on(path: str, text: str, n_tokens: int = 24) -> str:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = 256
    parameters.warmup = False
    parameters.verbosity = 0
    # Plain CPU buffers: the repacked AMX path of some builds faults on some machines.
    parameters.no_extra_bufts = True
    parameters.cpuparams.n_threads = 2
    server = xllamacpp.Server(parameters)
    request = {"prompt": text, "max_tokens": n_tokens, "temperature": 0}
    return server.handle_completions(request)["choices"][0]["text"]


if __name__ == "__main__":
    model, prompt = sys.argv[1:]
    sys.stdout.write(f"{prompt}{go_on(model, prompt)}\n")
