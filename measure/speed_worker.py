"""Child process of measure.speed: run llama.cpp through xllamacpp and print samples as one JSON line.

python -m measure.speed_worker '{"path": …, "tests": [[512, 0], …], "repeats": 5, "threads": null, "repack": true}'
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(job: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """Of each test and run: milliseconds for the prompt and for what was generated, after one unrecorded run."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["path"]
    params.n_parallel = 1
    params.n_ctx = max(p + g for p, g in job["tests"]) + 64
    params.no_extra_bufts = not job["repack"]
    if job["threads"] is not None:
        params.cpuparams.n_threads = job["threads"]
    server = xllamacpp.Server(params)
    out = []
    for n_prompt, n_gen in job["tests"]:
        request = {
            # Any tokens will do; different ones keep a cache from answering.
            "prompt": [2 + 7 * i % 251 for i in range(max(n_prompt, 1))],
            "n_predict": max(n_gen, 1),
            "ignore_eos": True,
            "cache_prompt": False,
            "top_k": 1,
        }
        runs = []
        for _ in range(job["repeats"] + 1):
            answer = server.handle_completions(request)
            found = json.loads(answer) if isinstance(answer, str | bytes) else answer
            if "timings" not in found:
                reason = found.get("error") or found
                reason = reason.get("message", reason) if isinstance(reason, dict) else reason
                sys.stderr.write(f"\nerror: {n_prompt} and {n_gen} tokens: {reason}; --tests names others\n")
                raise SystemExit(1)
            timings = found["timings"]
            runs.append((timings["prompt_ms"], timings["predicted_ms"]))
        out.append(runs[1:])
    return out


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(json.loads(sys.argv[1]))) + "\n")
