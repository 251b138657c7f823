"""The start and the end of a process: numpy's threads do not spin; once numpy was loaded, nothing registered or written
is lost, and the code is the command's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, types
from quantmill import __main__, cli
class Fake:
    def __del__(self):
        print("taken apart")
if sys.argv[1] == "numpy":
    sys.modules["numpy"] = types.ModuleType("numpy")
kept = Fake()
atexit.register(print, "registered")
def command():
    print("result")
    return 3
cli.main = command
sys.exit(__main__.main())
"""


@pytest.mark.parametrize(("loaded", "said"), [("numpy", []), ("nothing", ["taken apart"])])
def test_what_was_registered_is_done_and_what_was_written_is_there(loaded: str, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, loaded], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["result", "registered", *said]
    assert done.stderr == ""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="OpenBLAS starts no threads for one processor")
def test_threads_that_have_no_work_do_not_spin() -> None:
    program = (
        "import sys, time\n"
        "from quantmill import __main__, cli\n"
        "def command():\n"
        "    import numpy\n"
        "    time.sleep(0.2)\n"
        "    print(time.process_time() - time.thread_time())\n"
        "    return 0\n"
        "cli.main = command\n"
        "sys.exit(__main__.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.01
