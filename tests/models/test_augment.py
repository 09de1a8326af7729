"""Augmentation: its random numbers, and that only the key of a row matters."""

import numpy as np
import pytest
import torch

from models import augment

torch.set_num_threads(1)


def keys(rows, seed=0):
    return torch.randint(-(1 << 62), 1 << 62, (rows,), generator=torch.Generator().manual_seed(seed))


# --- random numbers ----------------------------------------------------------------------------------------------


def test_numbers_are_uniform_and_independent_of_each_other():
    x = augment.uniform(keys(4000), 50).double()
    assert x.min() >= 0
    assert x.max() < 1
    assert x.mean().item() == pytest.approx(0.5, abs=0.003)
    assert x.std().item() == pytest.approx(12**-0.5, abs=0.002)
    neighbours = torch.corrcoef(torch.stack([x[:, :-1].flatten(), x[:, 1:].flatten()]))[0, 1]
    streams = torch.corrcoef(torch.stack([x.flatten(), augment.uniform(keys(4000), 50, 1).double().flatten()]))[0, 1]
    counted = augment.uniform(torch.arange(4000), 50).double()  # keys that are barely different
    rows = torch.corrcoef(torch.stack([counted[:-1].flatten(), counted[1:].flatten()]))[0, 1]
    for correlation in (neighbours, streams, rows):
        assert abs(correlation) < 0.01


def test_more_numbers_of_a_key_begin_with_the_same_ones():
    assert torch.equal(augment.uniform(keys(3), 9)[:, :4], augment.uniform(keys(3), 4))


# --- masks -------------------------------------------------------------------------------------------------------


def runs(mask):
    """Lengths of the runs of True in a flat mask."""
    edges = np.flatnonzero(np.diff(np.r_[0, np.asarray(mask, int), 0]))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_a_time_mask_lies_in_the_valid_steps_and_takes_at_most_its_share(share):
    lengths = torch.tensor([40, 10, 1] * 300)
    masked = augment.mask_steps(torch.ones(900, 45, 3), lengths, keys(900), masks=1, share=share) == 0
    assert (masked.all(-1) == masked.any(-1)).all()  # whole steps
    masked = masked.all(-1)
    for n in (40, 10, 1):
        rows = masked[lengths == n]
        assert not rows[:, n:].any()
        widths = rows.sum(1)
        assert set(widths.tolist()) == set(range(int(n * share) + 1))  # from nothing to all that is allowed
        assert all(len(runs(row)) <= 1 for row in rows)
        if n == 40:
            assert rows[:, :n].any(0).all()  # every step can be masked


def test_a_frequency_mask_takes_at_most_its_share_of_the_bins():
    masked = augment.mask_bins(torch.ones(600, 5, 20), keys(600), masks=1, share=0.25) == 0
    assert (masked == masked[:, :1]).all()  # the same bins at every step
    assert set(masked[:, 0].sum(1).tolist()) == set(range(6))
    assert masked[:, 0].any(0).all()


def test_several_masks_are_drawn_apart():
    x, lengths = torch.ones(500, 100, 1), torch.full((500,), 100)
    masked = augment.mask_steps(x, lengths, keys(500), masks=3, share=0.1)[..., 0] == 0
    counts = [len(runs(row)) for row in masked]
    assert max(counts) == 3
    assert masked.sum(1).max() > 20
    assert masked.sum(1).max() <= 30


def test_nothing_is_drawn_without_masks():
    x = torch.randn(2, 5, 3)
    assert augment.mask_steps(x, torch.tensor([5, 5]), keys(2), masks=0, share=0.5) is x
    assert augment.mask_bins(x, keys(2), masks=0, share=0.5) is x


# --- speed and gain ----------------------------------------------------------------------------------------------


def test_speed_changes_length_and_pitch_by_the_same_factor():
    rate, n = 8000, 8000
    lengths = torch.tensor([n, n // 2] * 20)
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(n, dtype=torch.float64) / rate).expand(40, n)
    tone = tone.masked_fill(torch.arange(n) >= lengths[:, None], 0)
    played, changed = augment.change_speed(tone, lengths, keys(40), speed=0.2)
    factors = lengths / changed
    assert 0.79 < factors.min() < 0.87
    assert 1.13 < factors.max() < 1.21
    assert played.shape[1] == changed.max()
    for row, m, factor in zip(played, changed.tolist(), factors.tolist(), strict=True):
        assert (row[m:] == 0).all()
        peak = np.abs(np.fft.rfft(row[:m].numpy() * np.hanning(m), 1 << 16)).argmax() * rate / (1 << 16)
        assert peak == pytest.approx(440 * factor, rel=2e-3)


def test_speed_interpolates_between_neighbours():
    ramp = torch.arange(100.0, dtype=torch.float64).expand(5, 100)
    played, changed = augment.change_speed(ramp, torch.full((5,), 100), keys(5), speed=0.3)
    for row, m in zip(played, changed.tolist(), strict=True):
        factor = row[1].item()  # of a ramp, the value of a sample is its position
        assert 0.7 <= factor <= 1.3
        np.testing.assert_allclose(row[:m], np.arange(m) * factor, atol=1e-9)
        assert 99 - factor < row[m - 1] <= 99


def test_one_sample_stays_one_sample():
    played, changed = augment.change_speed(torch.ones(50, 1), torch.ones(50).long(), keys(50), speed=0.5)
    assert changed.tolist() == [1] * 50
    assert (played == 1).all()


def test_gain_stays_within_its_decibels():
    gain = 20 * augment.change_gain(torch.ones(500, 2), keys(500), decibels=6.0).log10()
    assert (gain[:, 0] == gain[:, 1]).all()
    assert -6 <= gain.min() < -5.8
    assert 5.8 < gain.max() <= 6


def test_uses_draw_from_streams_of_their_own():
    assert len({augment.TOKEN, augment.TIME, augment.FREQUENCY, augment.SPEED, augment.GAIN}) == 5


@pytest.mark.parametrize("name", ["steps", "bins", "speed", "gain"])
def test_a_row_is_augmented_alike_in_any_batch(name):
    def run(x, lengths, keys):
        if name == "speed":
            return augment.change_speed(x[..., 0], lengths, keys, speed=0.3)[0]
        if name == "gain":
            return augment.change_gain(x[..., 0], keys, decibels=6)
        if name == "bins":
            return augment.mask_bins(x, keys, masks=2, share=0.5)
        return augment.mask_steps(x, lengths, keys, masks=2, share=0.5)

    x, lengths, row_keys = torch.rand(6, 30, 8) + 1, torch.tensor([30, 12, 30, 7, 30, 30]), keys(6)
    whole = run(x, lengths, row_keys)
    order = [3, 1]
    part = run(x[order, :12], lengths[order], row_keys[order])
    width = min(part.shape[1], whole.shape[1])
    assert torch.equal(part[:, :width], whole[order, :width])
    assert not torch.equal(run(x, lengths, row_keys + 1), whole)
