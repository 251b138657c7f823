"""`python -m quantmill` and the script `quantmill`."""

# Python's answer to Ctrl-C is a traceback, until cli.main() takes it over; up to then there is nothing to clean up and
# the system may end the process. The module `signal` would take a millisecond more to load.
import _signal

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import sys


def main() -> int:
    from quantmill import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
