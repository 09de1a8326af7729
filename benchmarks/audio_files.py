"""Compare the sound files per second that Ray prepares with soundfile alone in one process; and peak memory.

python -m benchmarks.audio_files [files] [rounds]      (from the project's root; generates its data)

Two manifests are prepared, with a quarter of the files and with all of them: memory must be the same. The time excludes
Ray's start and includes everything else of preparation: finding and checking the files, Parquet, checksums, and
counting the classes.
"""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

RATE = 16_000


def write_files(folder: Path, count: int) -> None:
    """Write `count` WAV files of 0.5 to 1.5 s, and manifests of a quarter of them and of all, named by their counts."""
    import soundfile

    rng, rows = np.random.default_rng(0), [("path", "word")]
    for number in range(count):
        seconds, hertz = rng.uniform(0.5, 1.5), rng.uniform(100, 1000)
        times = np.arange(int(RATE * seconds)) / RATE
        wave = np.sin(2 * np.pi * hertz * times) + 0.1 * rng.normal(size=times.size)
        name = f"sounds/{number % 100:02}/{number:06}.wav"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, wave / 2, RATE, subtype="PCM_16")
        rows.append((name, "low" if hertz < 550 else "high"))
    for part in (count // 4, count):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows[: part + 1])


def read_alone(manifest: Path, read: Callable[[str], object]) -> float:
    """Files per second of a function that reads one, in this process."""
    with manifest.open() as file:
        paths = [str(manifest.parent / row["path"]) for row in csv.DictReader(file)]
    start = time.perf_counter()
    for path in paths:
        read(path)
    return len(paths) / (time.perf_counter() - start)


def prepare(manifest: Path, out: Path) -> float:
    """Files per second of preparation with Ray: found, checked, decoded, stored in Parquet, their classes counted."""
    import datasets
    from datasets.pipeline.prepare import prepare
    from datasets.pipeline.storage import Storage

    start = time.perf_counter()
    prepared = prepare(datasets.build("audio", path=str(manifest), label="word"), Storage(out))
    rows = sum(shard.rows for shard in prepared.parts["train"].shards)
    return rows / (time.perf_counter() - start)


@contextlib.contextmanager
def watch_memory() -> Iterator[dict[str, int]]:
    """Record peak memory in MB: of this process, of the largest of Ray's workers, and of all workers together."""
    import psutil

    peaks, done = {"driver": 0, "worker": 0, "workers": 0}, threading.Event()

    def private_memory(pid: int) -> int:
        """Memory without the shared pages of the object store."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return (int(status["RssAnon"].split()[0]) + int(status["RssFile"].split()[0])) // 1024

    def watch() -> None:
        while not done.wait(0.1):
            workers = [0]
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError, KeyError):
                    if process.name().startswith("ray::"):
                        workers.append(private_memory(process.pid))
            now = {"driver": private_memory(os.getpid()), "worker": max(workers), "workers": sum(workers)}
            peaks.update({name: max(peaks[name], value) for name, value in now.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def measure(folder: Path, count: int, rounds: int) -> None:
    """Measure one manifest; runs in a separate process, so that the peaks are its own."""
    import ray
    import soundfile

    from datasets.pipeline.ingest import configure_ray_data
    from datasets.reading.sound import decode

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    configure_ray_data()
    manifest = folder / f"{count}.csv"
    prepare(folder / "first.csv", folder / "out" / f"{count}-first")  # starts Ray's workers
    with watch_memory() as peaks:
        for number in range(rounds):
            alone = read_alone(manifest, lambda path: soundfile.read(path, dtype="int16"))
            decoded = read_alone(manifest, lambda path: decode(path, RATE, 30.0))
            ours = prepare(manifest, folder / "out" / f"{count}-{number}")
            print(
                f"{count:,} files: soundfile alone {alone:,.0f} files/s, audio.decode alone {decoded:,.0f} files/s "
                f"(ratio {decoded / alone:.2f}), prepared through Ray {ours:,.0f} files/s (ratio {ours / alone:.2f})",
                flush=True,
            )
    print(
        f"{count:,} files: peak memory of the driver {peaks['driver']} MB, of one worker {peaks['worker']} MB, of all "
        f"workers {peaks['workers']} MB",
        flush=True,
    )
    ray.shutdown()


def main(count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, count)
        head = (folder / f"{count}.csv").read_text().splitlines(keepends=True)
        (folder / "first.csv").write_text("".join(head[:41]))
        for part in (count // 4, count):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(measure, (folder, part, rounds))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, int(sys.argv[2]) if len(sys.argv) > 2 else 2)
