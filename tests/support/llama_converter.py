"""llama.cpp's converter, run beside ours: the oracle of golden.json and of bench/compare_convert.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SCRIPT = """
import base64, json, runpy, sys, traceback
root, jobs = sys.argv[1], json.load(sys.stdin)
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import ModelBase, TextModel
from conversion.deepseek import DeepseekV32Model
# it wants a class of tokenizer that says of itself that it adds a BOS
DeepseekV32Model.set_vocab = TextModel._set_vocab_gpt2
# Classes of tokenizers that come as code with a checkpoint: what llama.cpp's converter asks of them, from the files.
from transformers import AutoTokenizer
class FromTiktoken:
    def __init__(self, directory, file):
        lines = open(directory + "/" + file, "rb").read().split(b"\\n")
        pairs = (line.split() for line in lines if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        settings = json.load(open(directory + "/tokenizer_config.json"))
        config = json.load(open(directory + "/config.json"))
        self.vocab_size, first = (config | config.get("text_config", {}))["vocab_size"], len(ranks)
        if file == "hy.tiktoken":
            names = ["endoftext", "startoftext", "bos", "eos", "pad"]
            names += ["extra_%d" % i for i in range(self.vocab_size - first - 5)]
            self.special_tokens = {"<|%s|>" % name: i for i, name in enumerate(names, first)}
        else:
            named = {int(i): token["content"] for i, token in settings["added_tokens_decoder"].items()}
            places = range(first, first + 258)
            self.special_tokens = {named.get(i, "<|reserved_token_%d|>" % i): i for i in places}
            self.eos_id = self.special_tokens[settings["eos_token"]]
        self.mergeable_ranks, self.model = ranks, self
        self._mergeable_ranks = ranks
of_files = AutoTokenizer.from_pretrained
def tokenizer(directory, *arguments, trust_remote_code=False, **named):
    file = next((one for one in ("tiktoken.model", "hy.tiktoken") if (directory / one).is_file()), None)
    if file is None:
        return of_files(directory, *arguments, trust_remote_code=trust_remote_code, **named)
    if not trust_remote_code:
        raise ValueError("its tokenizer is code")
    return FromTiktoken(str(directory), file)
AutoTokenizer.from_pretrained = tokenizer
guess, load = TextModel.get_vocab_base_pre, ModelBase.load_hparams
def read(directory, is_mistral_format):
    with open(str(directory) + "/config.json", encoding="utf-8") as file:
        return json.load(file)
def classes(of):
    return [of, *(one for below in of.__subclasses__() for one in classes(below))]
from gguf import MODEL_TENSOR, TensorNameMap
names = dict(TensorNameMap.block_mappings_cfg)
# without these two of Gemma 3n's norms, which its table knows of Gemma 4 only, it stops
names[MODEL_TENSOR.A_ENC_CONV1D_NORM] += ("model.audio_tower.subsample_conv_projection.conv_{bid}.norm",)
errors = []
for job in jobs:
    TensorNameMap.block_mappings_cfg = dict(names)  # to which each architecture's own names are added
    for one in classes(ModelBase):  # the converter sets them where an option says so, and leaves them
        one.no_mtp = one.mtp_only = False
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
