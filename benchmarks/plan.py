"""Measure seconds and memory to plan one epoch of 100 million rows of unequal length, in 1,000 shards.

python -m benchmarks.plan [millions of rows]      (from the project's root; generates its lengths)
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from datasets.pipeline.plan import Plan


def main(millions: int) -> None:
    shards, total = 1000, millions * 1_000_000
    lengths = np.random.default_rng(0).integers(5, 200, total, dtype=np.int32)
    plan = Plan(
        np.full(shards, total // shards),
        np.full(shards, 32 << 20),
        4096,
        group_bytes=8 << 30,
        batch_tokens=65_536,
        lengths=lengths,
    )
    start, rows, batches, used, computed = time.perf_counter(), 0, 0, 0, 0
    for _, _, ids in plan.epoch(0):
        rows, batches = rows + ids.size, batches + 1
        if batches % 100 == 0:  # a sample of the padding, included in the time
            used, computed = used + int(lengths[ids].sum()), computed + ids.size * int(lengths[ids].max())
    seconds = time.perf_counter() - start
    assert rows == total
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{rows:,} rows in {batches:,} batches: {seconds:.1f} s, peak memory {peak:.2f} GiB, "
        f"{used / computed:.3f} of the computed steps are not padding"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
