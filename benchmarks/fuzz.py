"""Fuzz everything that Rondo parses with a million inputs, guided by coverage: only its own errors may occur.

python -m benchmarks.fuzz [share of a million]      (needs `pip install -c constraints.txt -e ".[fuzz]"`; from the root)

The targets are in tests/fuzz.py. An input that crashes a process or takes over 30 s is written to crash-TARGET-...
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from tests.fuzz import TARGETS

RUNS = {
    "experiment": 15_000,
    "overrides": 15_000,
    "bundle": 20_000,
    "sound": 40_000,
    "prepared": 40_000,
    "text": 40_000,
    "csv": 40_000,
    "parquet": 90_000,
    "json_lines": 150_000,
    "checkpoint": 150_000,
    "spool": 150_000,
    "manifest": 250_000,
}


def main(share: float) -> None:
    assert RUNS.keys() == TARGETS.keys()
    total, start, crashed = 0, time.monotonic(), []
    for target, runs in RUNS.items():
        target_start = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", target, str(int(runs * share))],
            capture_output=True,
            text=True,
            errors="replace",
        )
        inputs = int((re.findall(r"number_of_executed_units: (\d+)", process.stderr) or ["0"])[-1])
        covered = int((re.findall(r"cov: (\d+)", process.stderr) or ["0"])[-1])
        total += inputs
        print(
            f"{target}: {inputs:,} inputs, coverage {covered:,}, {time.monotonic() - target_start:.0f} s"
            + (f", exit code {process.returncode}" if process.returncode else ""),
            flush=True,
        )
        if process.returncode:
            crashed.append(target)
            print(process.stderr[-3000:])
    print(
        f"{total:,} inputs in {time.monotonic() - start:.0f} s; "
        + (f"crashes: {', '.join(crashed)}" if crashed else "no crash")
    )
    sys.exit(bool(crashed))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
