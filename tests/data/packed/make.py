"""Make golden.json anew: what llama.cpp's converter makes of the packed checkpoints of tests/support/packed_models.py.

    python tests/data/packed/make.py --llama.cpp path/to/llama.cpp [--only NAME ...]

Metadata, and a digest of every tensor, as in tests/data/convert/golden.json. Needs torch and llama.cpp's source tree.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))

from tests.data.convert import make as convert  # noqa: E402 - the repository is not installed for this script
from tests.support.convert_models import MODELS  # noqa: E402
from tests.support.packed_models import PACKED, write_packed  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama.cpp", dest="llama_cpp", type=Path, required=True)
    read = [name for name, model in PACKED.items() if model.options is not None]
    parser.add_argument("--only", nargs="*", default=read)
    options = parser.parse_args()
    convert.HERE = HERE
    golden = convert._read("golden.json")
    for name in options.only:
        golden[name] = reference(name, options.llama_cpp)
        print(name, len(golden[name]["tensors"]), "tensors", flush=True)
        convert._write("golden.json", {key: golden[key] for key in read if key in golden})


def reference(name: str, llama_cpp: Path) -> dict[str, object]:
    model = PACKED[name]
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_packed(name, Path(scratch) / "Tiny-Model-1B-Instruct")
        out = Path(scratch) / "out.gguf"
        pre = MODELS[model.base].tokenizer.partition("+")[0]
        script = [sys.executable, "-c", convert.REFERENCE, str(llama_cpp), pre, str(directory)]
        run = subprocess.run(
            [*script, "--outfile", str(out), *(model.options or ())],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise SystemExit(f"{name}: {run.stderr[-3000:]}")
        return convert.digest_gguf(out)


if __name__ == "__main__":
    main()
