"""What the first use of a type costs: in a new process with an empty cache, then in another with what that one left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

# The engine's own modules are imported first, so that what is measured is the type: its tables and its code.
_PROGRAM = """
import sys, time
import numpy as np
start = time.perf_counter()
from quantmill import qkernels
imported = time.perf_counter() - start
name, weighted, engine, device = sys.argv[1], sys.argv[2] == "1", sys.argv[3], sys.argv[4]
columns = max(256, qkernels.TYPES[name].block)
rows = np.random.default_rng(0).standard_normal((4, columns)).astype(np.float32)
importance = np.ones(columns, np.float32) if weighted else None
qkernels.quantize(rows, "F16")
if engine == "cpu":
    from quantmill.qkernels.lanes import cpu
else:
    import torch, importlib
    importlib.import_module("quantmill.qkernels.lanes." + engine)
    rows = torch.from_numpy(rows).to(device)
    importance = None if importance is None else torch.from_numpy(importance).to(device)
start = time.perf_counter(), time.process_time()
np.asarray(qkernels.quantize(rows, name, importance, engine=engine)[:1].tolist())
print(imported, time.perf_counter() - start[0], time.process_time() - start[1])
"""


@dataclass(frozen=True)
class Startup:
    """Seconds of wall time: importing qkernels, the first call ever, the first call of a later process."""

    import_s: float
    first_call_s: float
    cached_call_s: float


def measure(type: str, weighted: bool, engine: str, device: str) -> Startup:
    """Two new processes with one cache folder that starts empty. Raises RuntimeError when one fails."""
    with tempfile.TemporaryDirectory() as folder:
        # where the system at hand keeps a user's cache
        home = {"darwin": "HOME", "win32": "LOCALAPPDATA"}.get(sys.platform, "XDG_CACHE_HOME")
        places = {home: folder, "TRITON_CACHE_DIR": folder}
        first, later = (_run(type, weighted, engine, device, places) for _ in range(2))
    return Startup(round(later[0], 3), round(first[1], 3), round(later[1], 3))


def _run(type: str, weighted: bool, engine: str, device: str, places: dict[str, str]) -> list[float]:
    command = [sys.executable, "-c", _PROGRAM, type, "1" if weighted else "0", engine, device]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
    if done.returncode:
        raise RuntimeError(f"{type}: the process that measures the start failed:\n{done.stderr}")
    return [float(word) for word in done.stdout.split()]
