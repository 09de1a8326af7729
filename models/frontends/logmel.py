"""Log-mel frames of audio. Shapes: B rows, T samples, F frames, W samples of a window, M mel bands, K frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models import augment
from models.batch import Batch
from models.family import check_choice, step_mask
from models.frontends import FramesFrontend
from models.options import check_least
from models.sequence import Frontend

Normalisation = Literal["band", "recording", "none"]

LOWEST = 20.0  # Hz, where the first band begins; below it recordings hold hum
FLOOR = 1e-10  # least energy of a band: less than rounding to 16 bits leaves, so only digital silence is cut
USUAL, SPREAD = -6.0, 4.0  # about mean and deviation of speech: families expect numbers around 0
LEAST_SPREAD = 1e-3  # least deviation that is divided by, so that silence stays 0


class LogMel(FramesFrontend):
    """Samples -> logarithms of the energy in mel bands of overlapping windows. See `build`."""

    def __init__(
        self,
        rate: int,
        *,
        mels: int,
        window_ms: float,
        hop_ms: float,
        normalisation: Normalisation,
        range_db: float | None,
        speed: float,
        tempo: float,
        tilt: float,
        gain: float,
        **frames: Any,
    ) -> None:
        super().__init__(mels, **frames)
        check_least("model.mels", mels, 1)
        check_choice("normalisation", normalisation, get_args(Normalisation))
        if range_db is not None and not range_db > 0:
            raise ValueError(f"model.range_db={range_db} is too small; use more than 0, such as 40, or null")
        for key, value, highest in (
            ("speed", speed, 0.5),
            ("tempo", tempo, 2.0),
            ("tilt", tilt, 60.0),
            ("gain", gain, 60.0),
        ):
            if not 0 <= value <= highest:
                raise ValueError(f"model.{key}={value} is out of range; use a value in [0, {highest:g}], 0 for none")
        self.window, self.hop = _samples(rate, window_ms, hop_ms)
        self.points = 1 << (self.window - 1).bit_length()  # of the Fourier transform: a power of 2
        self.normalisation, self.range_db = normalisation, range_db
        self.speed, self.tempo, self.tilt, self.gain = speed, tempo, tilt, gain
        for key, value in (("speed", speed), ("tempo", tempo)):
            if value and not self.changes_steps:
                self.changes_steps = f"model.{key}={value} changes the number of steps; use model.{key}=0"
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        filters = _filters(mels, self.points, rate)
        if not filters.any(0).all():
            empty = int(np.flatnonzero(~filters.any(0))[0])
            fitting = next(m for m in range(mels - 1, 0, -1) if _filters(m, self.points, rate).any(0).all())
            raise ValueError(
                f"model.mels={mels} is too many for model.window_ms={window_ms:g} at {rate} Hz: band "
                f"{empty + 1} holds none of the frequencies that a window tells apart; use at most "
                f"{fitting}, or a longer window"
            )
        # In float64, so that they are exact for every model; `kind` takes on the model's own type.
        self.hann: Tensor
        self.filters: Tensor
        self.kind: Tensor
        self.register_buffer("hann", torch.tensor(hann), persistent=False)  # (W,)
        self.register_buffer("filters", torch.tensor(filters), persistent=False)  # (K, M)
        self.register_buffer("kind", torch.zeros(()), persistent=False)

    def frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """samples (B, T) int16 -> x (B, F, M), 0 in padded frames; frames of each row."""
        samples, lengths = batch.inputs["samples"], batch.lengths["samples"]
        kind = torch.promote_types(self.kind.dtype, torch.float32)
        with torch.autocast(samples.device.type, enabled=False):  # bf16 has 3 digits: less than 16-bit samples
            x = samples.to(kind).masked_fill(~step_mask(samples, lengths), 0) / 32768
            keys = self._keys(batch)
            if keys is not None and self.speed:
                x, lengths = augment.change_speed(x, lengths, keys, speed=self.speed)
            if keys is not None and self.gain:
                x = augment.change_gain(x, keys, decibels=self.gain)
            frames = self._windows(lengths)
            x = self._energies(x).clamp(min=FLOOR).log()
            if keys is not None and self.tempo:
                x, frames = augment.change_tempo(x, frames, keys, tempo=self.tempo)
            if keys is not None and self.tilt:
                x = augment.tilt_bands(x, keys, decibels=self.tilt)
            x, mask = self._normalised(x, frames)
            return x.masked_fill(~mask, 0).to(self.kind.dtype), frames

    def frame_lengths(self, batch: Batch) -> Tensor:
        """Windows of each row, as augmentation leaves them."""
        lengths, keys = batch.lengths["samples"], self._keys(batch)
        if keys is not None and self.speed:
            lengths = augment.speed_lengths(lengths, keys, speed=self.speed)
        frames = self._windows(lengths)
        if keys is not None and self.tempo:
            frames = augment.tempo_lengths(frames, keys, tempo=self.tempo)
        return frames

    def _keys(self, batch: Batch) -> Tensor | None:
        """What augmentation is drawn from; None where there is none."""
        return batch.keys if self.training else None

    def _windows(self, lengths: Tensor) -> Tensor:
        """Windows that lie inside each row; of a row that is shorter than one, one."""
        return (lengths - self.window).clamp(min=0) // self.hop + 1

    def _normalised(self, x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, F, M) around 0, and which frames are no padding, (B, F, 1)."""
        mask = step_mask(x, frames)[..., None]
        if self.range_db is not None:
            loudest = x.masked_fill(~mask, -torch.inf).amax((1, 2), keepdim=True)
            x = torch.maximum(x, loudest - self.range_db / 10 * math.log(10))
        if self.normalisation == "none":
            return (x - USUAL) / SPREAD, mask
        return normalised(x, mask, frames.to(x.device), (1,) if self.normalisation == "band" else (1, 2)), mask

    def _energies(self, x: Tensor) -> Tensor:
        """(B, T) -> (B, F, M): windows that lie inside the row, or the row with zeros if it is shorter than one."""
        x = F.pad(x, (0, max(0, self.window - x.shape[1])))
        windows = x.unfold(1, self.window, self.hop) * self.hann.to(x.dtype)  # (B, F, W)
        power = torch.view_as_real(torch.fft.rfft(windows, self.points)).square().sum(-1)  # (B, F, K)
        return power @ self.filters.to(x.dtype)


def normalised(x: Tensor, mask: Tensor, lengths: Tensor, over: tuple[int, ...] = (1,)) -> Tensor:
    """x (B, F, M) with each row at mean 0 and deviation 1 over the frames in mask (B, F, 1), or over the bands, too."""
    count = lengths[:, None, None] * (x.shape[2] if 2 in over else 1)
    x = x - x.masked_fill(~mask, 0).sum(over, keepdim=True) / count
    spread = (x.square().masked_fill(~mask, 0).sum(over, keepdim=True) / count).sqrt()
    return x / spread.clamp(min=LEAST_SPREAD)


def _samples(rate: int, window_ms: float, hop_ms: float) -> tuple[int, int]:
    """Samples of a window and between the starts of windows."""
    if not 1 <= window_ms <= 1000 or round(rate * window_ms / 1000) < 2:
        raise ValueError(
            f"model.window_ms={window_ms:g} is out of range; use 1 to 1000 ms, at least 2 samples "
            f"at {rate} Hz; 25 is usual"
        )
    if not 0 < hop_ms <= window_ms or round(rate * hop_ms / 1000) < 1:
        raise ValueError(
            f"model.hop_ms={hop_ms:g} is out of range; use at least one sample ({1000 / rate:g} ms) and "
            f"at most model.window_ms={window_ms:g}, so that no sample is skipped; 10 is usual"
        )
    return round(rate * window_ms / 1000), round(rate * hop_ms / 1000)


def _filters(mels: int, points: int, rate: int) -> NDArray[np.float64]:
    """(K, M) weights of triangles whose corners are evenly spaced on the mel scale, and whose sides are straight there.

    The scale is O'Shaughnessy's (1987), mel(f) = 2595 log10(1 + f / 700); the triangles are those of HTK.
    """
    frequencies = np.arange(points // 2 + 1) * rate / points
    at, low, high = (2595 * np.log10(1 + f / 700) for f in (frequencies, LOWEST, rate / 2))
    width = (high - low) / (mels + 1)
    centres = low + width * np.arange(1, mels + 1)
    filters: NDArray[np.float64] = np.maximum(0.0, 1 - np.abs(at[:, None] - centres) / width)
    return filters


def build(
    spec: Mapping[str, Any],
    *,
    mels: int = 40,
    window_ms: float = 25.0,
    hop_ms: float = 10.0,
    normalisation: Normalisation = "band",
    range_db: float | None = None,
    stack: int = 1,
    time_masks: int = 0,
    time_mask: float = 0.1,
    frequency_masks: int = 0,
    frequency_mask: float = 0.15,
    speed: float = 0.0,
    tempo: float = 0.0,
    tilt: float = 0.0,
    gain: float = 0.0,
) -> Frontend:
    """Logarithms of the energy in mel bands, computed from samples at ``spec["rate"]`` Hz where the model runs.

    Args:
        mels: bands, from 20 Hz to half the rate.
        window_ms: length of a (Hann) window in milliseconds.
        hop_ms: milliseconds between the starts of windows.
        normalisation: what is brought to mean 0 and deviation 1: band (each band of each recording, which takes out the
            microphone and the loudness: cepstral mean and variance normalisation), recording (all its bands together,
            which takes out the loudness) or none (a usual mean and deviation, the same for all).
        range_db: energies that are more than this many dB below a recording's loudest are raised to that, so that
            quiet and noisy rooms look alike; null leaves them.
        stack: consecutive frames that make one step of the family.
        time_masks: runs of frames of each recording that are set to 0 in training (SpecAugment).
        time_mask: the longest of them, as a share of the recording's frames; lengths are drawn from 0 to it.
        frequency_masks: runs of neighbouring bands of each recording that are set to 0 in training.
        frequency_mask: the widest of them, as a share of the bands; widths are drawn from 0 to it.
        speed: in training each recording is played at 1 - speed to 1 + speed times its speed, pitch included.
        tempo: in training each recording is stretched or compressed in time, up to 1 + tempo times, pitch kept.
        tilt: in training each recording gets a random colour, a slope and a bow over the bands of up to this many dB.
        gain: in training each recording is made up to this many dB louder or quieter; where normalisation takes
            loudness out again, it changes little but the quietest frames.

    Raises:
        ValueError: an option is out of its range, or the bands are narrower than what a window tells apart.
    """
    return LogMel(
        spec["rate"],
        mels=mels,
        window_ms=window_ms,
        hop_ms=hop_ms,
        normalisation=normalisation,
        range_db=range_db,
        speed=speed,
        tempo=tempo,
        tilt=tilt,
        gain=gain,
        stack=stack,
        time_masks=time_masks,
        time_mask=time_mask,
        frequency_masks=frequency_masks,
        frequency_mask=frequency_mask,
    )
