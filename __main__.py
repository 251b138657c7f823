"""`python -m quantmill` is the command `quantmill`."""

import sys

from quantmill.cli import main

sys.exit(main())
