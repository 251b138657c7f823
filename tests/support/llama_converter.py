"""llama.cpp's converter, run beside ours: the oracle of golden.json and of bench/compare_convert.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SCRIPT = """
import json, runpy, sys, traceback
root, jobs = sys.argv[1], json.load(sys.stdin)
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import ModelBase, TextModel
from conversion.deepseek import DeepseekV32Model
# it wants a class of tokenizer that says of itself that it adds a BOS
DeepseekV32Model.set_vocab = TextModel._set_vocab_gpt2
guess, load = TextModel.get_vocab_base_pre, ModelBase.load_hparams
def read(directory, is_mistral_format):
    with open(str(directory) + "/config.json", encoding="utf-8") as file:
        return json.load(file)
errors = []
for job in jobs:
    # the made-up tokenizers have no hash that llama.cpp knows, so it is told their pre-tokenizer
    TextModel.get_vocab_base_pre = (lambda self, tokenizer: job["pre"]) if job["pre"] else guess
    ModelBase.load_hparams = staticmethod(read) if job["raw"] else load
    sys.argv = ["convert_hf_to_gguf.py", job["directory"], "--outfile", job["out"], *job["options"]]
    try:
        runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
        errors.append("")
    except (Exception, SystemExit):
        errors.append(traceback.format_exc()[-3000:])
print("errors", json.dumps(errors))
"""


@dataclass(frozen=True)
class Job:
    """pre: the pre-tokenizer that the vocabulary's is to be taken for; "": llama.cpp's own guess. raw: config.json is
    taken as it stands, not as transformers' class completes it."""

    directory: str
    out: str
    pre: str = ""
    options: Sequence[str] = ()
    raw: bool = False


def convert(jobs: Sequence[Job], llama_cpp: Path) -> list[str]:
    """Convert each directory with the converter in llama.cpp's source tree, in one process.

    What went wrong with each, "" where nothing did.
    """
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(llama_cpp)],
        input=json.dumps([asdict(job) for job in jobs]),
        capture_output=True,
        text=True,
        check=True,
    )
    last = run.stdout.strip().splitlines()[-1]
    return list(json.loads(last.removeprefix("errors ")))
