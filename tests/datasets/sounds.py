"""Sound files for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000


def noise(count: int = 1000, *, seed: int = 0, channels: int = 1) -> np.ndarray:
    """(T,) or (T, C) int16; the first two samples are the extremes."""
    shape = count if channels == 1 else (count, channels)
    samples = np.random.default_rng(seed).integers(-20_000, 20_000, shape).astype(np.int16)
    samples[:2] = np.array([-32768, 32767]).reshape(-1, *[1] * (samples.ndim - 1))[: len(samples)]
    return samples


def sine(hertz: float, seconds: float, rate: int, *, loudness: float = 0.5) -> np.ndarray:
    return loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def coded(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    """The bytes of a sound file, by default in WAV format."""
    if options.get("subtype") == "FLOAT" and samples.dtype == np.int16:
        samples = samples / 32768
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, **{"format": "WAV"} | options)
    return sink.getvalue()


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)
