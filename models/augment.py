"""Augmentation whose random numbers belong to rows. Shapes: B rows, T time, F bins, M masks.

A row's numbers are a function of its key alone, which is mixed from (seed, epoch, row id): they do not depend on the
other rows of its batch, on the order of rows, or on how many workers share them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import splitmix64
from models.family import step_mask

TOKEN, TIME, FREQUENCY, SPEED, GAIN, TEMPO, TILT = range(7)  # streams: uses are independent
SAMPLE = 1000  # the first of those that sampling uses


def uniform(keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """Random numbers from keys, bit for bit the same on every machine: splitmix64.

    Args:
        keys: (B,) int64, on the CPU.
        count: numbers for each key.
        stream: another stream gives independent numbers for the same keys.

    Returns:
        (B, count) float32 in [0, 1), multiples of 2^-24, on the CPU.
    """
    return torch.from_numpy(splitmix64.uniform(keys.numpy(), count, stream))


def mask_steps(x: Tensor, lengths: Tensor, keys: Tensor, *, masks: int, share: float) -> Tensor:
    """x (B, T, F) with runs of steps set to 0, the time masks of SpecAugment (Park et al. 2019).

    Args:
        x: (B, T, F), each bin with mean 0, so that a masked step says nothing.
        lengths: (B,) valid steps, on the CPU.
        keys: (B,) of the rows, on the CPU.
        masks: of each row; they may overlap.
        share: the longest mask, as a share of the row's valid steps; lengths are drawn from 0 to it.
    """
    if not masks:
        return x
    return x.masked_fill(_runs(uniform(keys, 2 * masks, TIME), lengths, share, x.shape[1]).to(x.device)[..., None], 0)


def mask_bins(x: Tensor, keys: Tensor, *, masks: int, share: float) -> Tensor:
    """x (B, T, F) with runs of bins set to 0, the frequency masks of SpecAugment; see ``mask_steps``."""
    if not masks:
        return x
    bins = torch.full((len(x),), x.shape[2])
    return x.masked_fill(_runs(uniform(keys, 2 * masks, FREQUENCY), bins, share, x.shape[2]).to(x.device)[:, None], 0)


def change_speed(samples: Tensor, lengths: Tensor, keys: Tensor, *, speed: float) -> tuple[Tensor, Tensor]:
    """Each row played faster or slower, pitch included (Ko et al. 2015), by linear interpolation.

    Args:
        samples: (B, T) float, finite in padded steps.
        lengths: (B,) on the CPU.
        keys: (B,) on the CPU.
        speed: factors are drawn from [1 - speed, 1 + speed].

    Returns:
        samples (B, T'), 0 in padded steps, and their lengths on the CPU: sample t is the old row at t x factor.
    """
    played, changed = _played(samples[..., None], lengths, _speeds(keys, speed))
    return played[..., 0], changed


def change_tempo(x: Tensor, lengths: Tensor, keys: Tensor, *, tempo: float) -> tuple[Tensor, Tensor]:
    """Each row of frames x (B, T, F) stretched or compressed in time; the frames themselves do not change.

    Args and returns are those of ``change_speed``, but factors are drawn from 1 / (1 + tempo) to 1 + tempo, as often
    below 1 as above.
    """
    return _played(x, lengths, _tempos(keys, tempo))


def speed_lengths(lengths: Tensor, keys: Tensor, *, speed: float) -> Tensor:
    """The lengths (B,) that ``change_speed`` gives."""
    return _played_lengths(lengths, _speeds(keys, speed))


def tempo_lengths(lengths: Tensor, keys: Tensor, *, tempo: float) -> Tensor:
    """The lengths (B,) that ``change_tempo`` gives."""
    return _played_lengths(lengths, _tempos(keys, tempo))


def _speeds(keys: Tensor, speed: float) -> Tensor:
    """(B, 1) float64."""
    return 1 + speed * (2 * uniform(keys, 1, SPEED).double() - 1)


def _tempos(keys: Tensor, tempo: float) -> Tensor:
    """(B, 1) float64."""
    factors: Tensor = (1 + tempo) ** (2 * uniform(keys, 1, TEMPO).double() - 1)
    return factors


def _played_lengths(lengths: Tensor, factor: Tensor) -> Tensor:
    return ((lengths[:, None] - 1) / factor).floor().long()[:, 0] + 1


def _played(x: Tensor, lengths: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, T, F) read at every `factor` (B, 1) steps: (B, T', F) and lengths."""
    changed = _played_lengths(lengths, factor)
    factor, last = factor.to(x.device), (lengths - 1).to(x.device)[:, None]
    position = torch.arange(int(changed.max()), device=x.device) * factor  # (B, T'), float64: exact positions
    low = torch.minimum(position.floor().long(), last)
    rows = torch.arange(len(x), device=x.device)[:, None]
    before, after = x[rows, low], x[rows, torch.minimum(low + 1, last)]
    played = before + (after - before) * (position - low).to(x.dtype)[..., None]
    return played.masked_fill(~step_mask(played, changed)[..., None], 0), changed


def tilt_bands(x: Tensor, keys: Tensor, *, decibels: float) -> Tensor:
    """Logarithms of energies x (B, T, F) with a random colour: a slope and a bow over the bands.

    Each is drawn from [-decibels, decibels] at the last band: what microphones and rooms do to a sound.
    """
    slope, bow = (decibels / 10 * math.log(10) * (2 * uniform(keys, 2, TILT) - 1)).to(x.device, x.dtype).chunk(2, 1)
    at = torch.linspace(-1, 1, x.shape[2], device=x.device, dtype=x.dtype)
    return x + (slope * at + bow * (2 * at.square() - 1))[:, None]


def change_gain(samples: Tensor, keys: Tensor, *, decibels: float) -> Tensor:
    """Each row of samples (B, T) louder or quieter by a gain drawn from [-decibels, decibels]."""
    gain = decibels * (2 * uniform(keys, 1, GAIN).double() - 1)
    return samples * (10 ** (gain / 20)).to(samples.device, samples.dtype)


def _runs(draws: Tensor, sizes: Tensor, share: float, total: int) -> Tensor:
    """(B, total) bool, True inside one of M runs of at most share x size, from draws (B, 2 M) and sizes (B,)."""
    widths, starts = draws.double().chunk(2, dim=1)  # in float32 a draw near 1 could reach the end of its range
    width = (widths * ((sizes * share).floor()[:, None] + 1)).floor()  # (B, M)
    start = (starts * (sizes[:, None] - width + 1)).floor()
    position = torch.arange(total)
    return ((position >= start[..., None]) & (position < (start + width)[..., None])).any(1)
