"""Are our files llama-quantize's? Runs both on a model with the same arguments and compares every byte.

    python -m bench.compare_files LLAMA_QUANTIZE MODEL [--imatrix FILE] [--types Q4_K_M,Q6_K] [--sets FILE]

Without --sets: each file type (all of them, or --types) without and with importance, then the options that change
types, names, metadata and the number of files. A file for --sets has one set of arguments a line, the type last; `@`
stands for the importance file. One line a set: equal, both refuse, or the first difference. Exit code 1 if any
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from quantmill import cli
from quantmill.gguf_io import GGUFSource
from quantmill.recipe import FILE_TYPES

OPTION_SETS = """
--pure Q4_K_M
--pure --imatrix @ Q3_K_L
--pure --output-tensor-type q8_0 Q5_K_S
--leave-output-tensor Q4_K_M
--token-embedding-type q5_0 Q4_K_M
--token-embedding-type f16 --output-tensor-type q6_k --imatrix @ Q3_K_M
--tensor-type attn_v=q8_0 --tensor-type "ffn_(up|gate)=q4_0" Q4_K_M
--tensor-type "blk\\.[0-3]\\.ffn_down=q6_k" --tensor-type ffn_down=q5_k --imatrix @ Q4_K_M
--tensor-type token_embd=q4_1 --tensor-type "\\.1\\d?\\.attn_[qk]\\.=bf16" Q5_K_M
--imatrix @ --include-weights ffn_ Q4_K_M
--imatrix @ --exclude-weights attn_ --exclude-weights .5. Q2_K
--imatrix @ --include-weights nothing_has_this Q4_0
--override-kv general.name=str:renamed --override-kv general.size=int:-7 Q8_0
--override-kv general.scale=float:0.1 --override-kv general.flag=bool:true --imatrix @ Q4_K_S
--prune-layers 1 Q4_K_M
--prune-layers 0,3 --imatrix @ Q4_K_M
--prune-layers 2 --tensor-type "blk\\.1\\.=q8_0" --imatrix @ Q5_K_M
--prune-layers 1 COPY
--keep-split Q4_K_M
--max-buffer-size 1 --imatrix @ Q4_K_M
COPY
"""


def option_sets(types: list[str]) -> Iterator[str]:
    for file_type in types:
        yield file_type
        yield f"--imatrix @ {file_type}"
    yield from filter(None, OPTION_SETS.splitlines())


def run_theirs(program: str, options: list[str], model: str, output: Path, file_type: str) -> bool:
    command = [program, *options, model, str(output), file_type, "2"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_ours(options: list[str], model: str, output: Path, file_type: str) -> tuple[bool, str]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = cli.main(["quantize", *options, model, str(output), file_type, "2"])
    return code == 0, shown.getvalue().strip().splitlines()[-1]


def first_difference(ours: Path, theirs: Path) -> str | None:
    """None when the files are equal, else the first key or tensor that differs, or just the first byte."""
    a, b = (np.memmap(path, np.uint8, "r") for path in (ours, theirs))
    if len(a) == len(b) and np.array_equal(a, b):
        return None
    one, two = GGUFSource(ours), GGUFSource(theirs)
    for mine, other in zip_longest(one.metadata.items(), two.metadata.items()):
        if mine != other:
            return f"metadata: {mine} where llama-quantize has {other}"
    for left, right in zip_longest(one.specs(), two.specs()):
        if left != right:
            return f"tensor: {left} where llama-quantize has {right}"
        if not np.array_equal(one.read(left.name), two.read(right.name)):
            unequal = int((one.read(left.name) != two.read(right.name)).any(1).sum())
            return f"{left.name} ({left.type}): {unequal} of {left.n_rows} rows differ"
    size = min(len(a), len(b))
    differing = np.flatnonzero(a[:size] != b[:size])
    return f"byte {differing[0] if len(differing) else size} of {len(a)} and {len(b)}"


def compare(program: str, model: str, arguments: str, imatrix: str | None, scratch: Path) -> tuple[bool, str]:
    """Whether a set of arguments gives the same files, and the verdict in words."""
    *options, file_type = [imatrix or "" if word == "@" else word for word in shlex.split(arguments)]
    for side in ("ours", "theirs"):
        (scratch / side).mkdir()
    their_success = run_theirs(program, options, model, scratch / "theirs" / "out.gguf", file_type)
    success, last_line = run_ours(options, model, scratch / "ours" / "out.gguf", file_type)
    if not (success and their_success):
        if success == their_success:
            return True, f"both refuse: {last_line}"
        return False, "llama-quantize refuses" if success else f"only we refuse: {last_line}"
    names = [sorted(path.name for path in (scratch / side).iterdir()) for side in ("ours", "theirs")]
    if names[0] != names[1]:
        return False, f"files {names[0]} where llama-quantize writes {names[1]}"
    n_bytes = 0
    for name in names[0]:
        difference = first_difference(scratch / "ours" / name, scratch / "theirs" / name)
        if difference is not None:
            return False, f"{name}: {difference}"
        n_bytes += (scratch / "ours" / name).stat().st_size
    return True, f"equal, {n_bytes} bytes in {len(names[0])} file{'s' if len(names[0]) > 1 else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_quantize")
    parser.add_argument("model")
    parser.add_argument("--imatrix")
    parser.add_argument("--types", default=",".join(FILE_TYPES))
    parser.add_argument("--sets", type=Path)
    given = parser.parse_args()
    sets = given.sets.read_text().splitlines() if given.sets else option_sets(given.types.split(","))
    wanted = [line for line in sets if line.strip() and (given.imatrix or "@" not in line.split())]
    failures = 0
    for arguments in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            same, verdict = compare(
                given.llama_quantize, given.model, arguments, given.imatrix, Path(scratch)
            )
        failures += not same
        print(f"{'ok  ' if same else 'DIFF'}  {arguments}: {verdict}", flush=True)
    print(f"{len(wanted) - failures} of {len(wanted)} sets agree")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
