"""`python -m quantmill` and the script `quantmill`."""

# Python's answer to Ctrl-C is a traceback, until cli.main() takes it over; up to then there is nothing to clean up and
# the system may end the process. The module `signal` would take a millisecond more to load.
import _signal

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import sys


def main() -> int:
    # numpy's OpenBLAS starts a thread a processor, and each waits for its first work by spinning for 2^26 ticks of the
    # clock, unless it is told to spin for no more than 2^4.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    from quantmill import cli

    code = cli.main()
    if "numpy" in sys.modules:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End the process after what was registered for its end. Python would take all modules apart first, object by
    object, which with torch and transformers takes most of a second of processor time, with numpy 0.03 s."""
    import atexit
    import contextlib

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # it was said, where it can be
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
