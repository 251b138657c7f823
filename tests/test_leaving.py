"""The end of a command that has loaded torch: nothing registered or written is lost, and the code is the command's."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, types
from quantmill import __main__, cli
class Fake:
    def __del__(self):
        print("taken apart")
if sys.argv[1] == "torch":
    sys.modules["torch"] = types.ModuleType("torch")
kept = Fake()
atexit.register(print, "registered")
def command():
    print("result")
    return 3
cli.main = command
sys.exit(__main__.main())
"""


@pytest.mark.parametrize(("loaded", "said"), [("torch", []), ("nothing", ["taken apart"])])
def test_what_was_registered_is_done_and_what_was_written_is_there(loaded: str, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, loaded], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["result", "registered", *said]
    assert done.stderr == ""
