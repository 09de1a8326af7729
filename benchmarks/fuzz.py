"""A million inputs, guided by coverage, for all that Rondo parses (tests/fuzz.py): is its own error all that comes?

python -m benchmarks.fuzz [share of a million]      (needs `pip install -c constraints.txt -e ".[fuzz]"`; from the root)

What ends a process, or takes over 30 s, is written to crash-TARGET-...
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from tests.fuzz import TARGETS

RUNS = {"experiment": 15_000, "overrides": 15_000, "bundle": 20_000, "sound": 40_000, "prepared": 40_000,
        "text": 40_000, "csv": 40_000, "parquet": 90_000, "json_lines": 150_000, "checkpoint": 150_000,
        "spool": 150_000, "manifest": 250_000}


def main(share: float) -> None:
    assert RUNS.keys() == TARGETS.keys()
    tried, start, broken = 0, time.monotonic(), []
    for target, runs in RUNS.items():
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", target, str(int(runs * share))], capture_output=True,
                              text=True, errors="replace")
        inputs = int((re.findall(r"number_of_executed_units: (\d+)", done.stderr) or ["0"])[-1])
        covered = int((re.findall(r"cov: (\d+)", done.stderr) or ["0"])[-1])
        tried += inputs
        print(f"{target}: {inputs:,} inputs, {covered:,} places of the code reached, {time.monotonic() - began:.0f} s"
              + (f", exit code {done.returncode}" if done.returncode else ""), flush=True)
        if done.returncode:
            broken.append(target)
            print(done.stderr[-3000:])
    print(f"{tried:,} inputs in {time.monotonic() - start:.0f} s; "
          + (f"crashes: {', '.join(broken)}" if broken else "no crash"))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
