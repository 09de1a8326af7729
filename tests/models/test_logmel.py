"""Log-mel frames against plain numpy in float64: an explicit Fourier sum, triangles by their corners, row by row."""

import numpy as np
import pytest
import torch

from models import frontends
from models.batch import Batch

torch.set_num_threads(1)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
LENGTHS = [2000, 1, 150, 200, 201, 279, 280, 1337]  # at 8 kHz a window is 200 samples, a hop 80


def batch(lengths=LENGTHS, *, padding=0, extra=0, seed=0, keys=None):
    """Noise with a tone, int16, `padding` (a number, or noise for None) in padded samples."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(99)
    samples = np.zeros((len(lengths), max(lengths) + extra), np.int16)
    for row, n in zip(samples, lengths, strict=True):
        tone = 8000 * np.sin(2 * np.pi * rng.uniform(0.01, 0.4) * np.arange(n))
        row[:n] = rng.normal(scale=rng.uniform(1, 3000), size=n) + tone
        row[n:] = other.integers(-32768, 32767, samples.shape[1] - n) if padding is None else padding
    return Batch(
        {"samples": torch.from_numpy(samples)},
        {"samples": torch.tensor(lengths)},
        {},
        torch.ones(len(lengths)),
        torch.arange(len(lengths)),
        keys=keys,
    )


def keys(rows, seed=0):
    return torch.randint(-(1 << 62), 1 << 62, (rows,), generator=torch.Generator().manual_seed(seed))


def mel(f):
    return 2595 * np.log10(1 + f / 700)


def triangles(mels, points, rate):
    """(K, M), weight by weight, from the corners of each triangle."""
    corners = [mel(20) + (mel(rate / 2) - mel(20)) * i / (mels + 1) for i in range(mels + 2)]
    found = np.zeros((points // 2 + 1, mels))
    for k in range(points // 2 + 1):
        at = mel(k * rate / points)
        for m in range(mels):
            left, middle, right = corners[m : m + 3]
            if left < at <= middle:
                found[k, m] = (at - left) / (middle - left)
            elif middle < at < right:
                found[k, m] = (right - at) / (right - middle)
    return found


def reference(samples, rate, *, mels=40, window_ms=25.0, hop_ms=10.0, normalisation="band"):
    """(F, M) of one row's valid samples."""
    window, hop = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
    points = 2 ** int(np.ceil(np.log2(window)))
    x = np.zeros(max(window, len(samples)))
    x[: len(samples)] = np.asarray(samples, float) / 32768
    k, t = np.arange(points // 2 + 1), np.arange(window)
    fourier = np.exp(-2j * np.pi * np.outer(t, k) / points)
    hann = np.sin(np.pi * t / window) ** 2
    frames = [x[start : start + window] for start in range(0, len(x) - window + 1, hop)]
    power = np.abs((np.stack(frames) * hann) @ fourier) ** 2
    out = np.log(np.maximum(power @ triangles(mels, points, rate), 1e-10))
    if normalisation == "none":
        return (out + 6) / 4
    if normalisation == "recording":
        return (out - out.mean()) / np.maximum(out.std(), 1e-3)
    return (out - out.mean(0)) / np.maximum(out.std(0), 1e-3)


def make(rate=8000, *, dtype=torch.float64, **options):
    return frontends.build("logmel", {"rate": rate}, **{"mels": 23} | options).to(dtype).eval()


@pytest.mark.parametrize("normalisation", ["band", "recording", "none"])
@pytest.mark.parametrize(
    ("rate", "options"),
    [
        (8000, {"mels": 23}),
        (16000, {"mels": 40}),
        (16000, {"mels": 64, "window_ms": 32.0, "hop_ms": 16.0}),
        (8000, {"mels": 20, "window_ms": 20.0, "hop_ms": 20.0}),
        (22050, {"mels": 30}),
    ],
)
def test_frames_are_those_of_the_definition(rate, options, normalisation):
    front, data = make(rate, normalisation=normalisation, **options), batch()
    x, frames, context = front(data)
    assert (front.size, context, x.dtype) == (options["mels"], {}, torch.float64)
    for b, n in enumerate(LENGTHS):
        expected = reference(data.inputs["samples"][b, :n], rate, normalisation=normalisation, **options)
        assert frames[b] == len(expected)
        np.testing.assert_allclose(x[b, : frames[b]], expected, rtol=0, atol=1e-7)
        assert (x[b, frames[b] :] == 0).all()


def test_a_row_shorter_than_a_window_is_one_frame_and_a_last_part_of_a_hop_is_none():
    _, frames, _ = make()(batch())
    assert frames.tolist() == [23, 1, 1, 1, 1, 1, 2, 15]  # 1 + (n - 200) // 80
    assert frames.device.type == "cpu"


@pytest.mark.parametrize("device", DEVICES)
def test_single_precision_is_near_double_also_under_autocast(device):
    exact, _, _ = make()(batch())
    front, data = make(dtype=torch.float32).to(device), batch().to(torch.device(device))
    plain = front(data)[0]
    with torch.autocast(device, torch.bfloat16):
        x, _, _ = front(data)
    assert torch.equal(x, plain)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.cpu().double(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("normalisation", ["band", "recording", "none"])
def test_padding_has_no_influence(normalisation, stack):
    front = make(normalisation=normalisation, stack=stack)
    clean, lengths, _ = front(batch())
    for dirty in (batch(padding=None), batch(padding=-32768, extra=500)):
        x, same, _ = front(dirty)
        assert same.tolist() == lengths.tolist()
        torch.testing.assert_close(x[:, : clean.shape[1]], clean, rtol=0, atol=1e-10)
        assert (x[:, clean.shape[1] :] == 0).all()
    for b, n in enumerate(LENGTHS):
        alone = batch([n])
        alone.inputs["samples"] = batch().inputs["samples"][b : b + 1, :n]
        torch.testing.assert_close(front(alone)[0], clean[b : b + 1, : lengths[b]], rtol=0, atol=1e-10)


def test_each_band_of_each_row_has_mean_0_and_deviation_1():
    x, frames, _ = make()(batch([4000, 2000], padding=None))
    for row, n in zip(x, frames.tolist(), strict=True):
        np.testing.assert_allclose(row[:n].mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(row[:n].std(0, unbiased=False), 1, atol=1e-9)


def test_silence_and_full_scale_are_finite():
    for normalisation in ("band", "recording", "none"):
        for value in (0, 32767, -32768):
            data = batch([1000, 1])
            data.inputs["samples"][:] = value
            x, _, _ = make(dtype=torch.float32, normalisation=normalisation)(data)
            assert torch.isfinite(x).all()
            assert value != 0 or normalisation == "none" or (x == 0).all()


def test_stacked_frames_stand_side_by_side():
    plain, frames, _ = make()(batch())
    front = make(stack=4)
    x, lengths, _ = front(batch())
    assert front.size == 4 * 23
    assert lengths.tolist() == [-(-n // 4) for n in frames.tolist()] == [6, 1, 1, 1, 1, 1, 1, 4]
    torch.testing.assert_close(x.reshape(len(LENGTHS), -1, 23)[:, : plain.shape[1]], plain)


# --- augmentation ------------------------------------------------------------------------------------------------

AUGMENTED = {
    "time_masks": 2,
    "time_mask": 0.2,
    "frequency_masks": 2,
    "frequency_mask": 0.3,
    "speed": 0.15,
    "gain": 6.0,
    "tempo": 0.3,
    "tilt": 5.0,
}


def test_augmentation_is_off_in_evaluation_and_without_keys():
    plain = make()(batch())[0]
    data = batch(keys=keys(len(LENGTHS)))
    assert torch.equal(make(**AUGMENTED)(data)[0], plain)
    assert not torch.equal(make(**AUGMENTED).train()(data)[0], plain)
    data.keys = None
    assert torch.equal(make(**AUGMENTED).train()(data)[0], plain)


@pytest.mark.parametrize("normalisation", ["band", "recording", "none"])
def test_a_row_is_augmented_alike_in_any_batch_and_padding_has_no_influence(normalisation):
    front, own = make(normalisation=normalisation, stack=2, **AUGMENTED).train(), keys(len(LENGTHS))
    x, lengths, _ = front(batch(keys=own))
    dirty, same, _ = front(batch(keys=own, padding=None))
    torch.testing.assert_close(dirty, x, rtol=0, atol=1e-10)
    assert torch.equal(lengths, same)
    for b, n in enumerate(LENGTHS):
        alone = batch([n], keys=own[b : b + 1])
        alone.inputs["samples"] = batch().inputs["samples"][b : b + 1, :n]
        one, length, _ = front(alone)
        assert length[0] == lengths[b]
        torch.testing.assert_close(one[0], x[b, : lengths[b]], rtol=0, atol=1e-10)
    assert not torch.equal(front(batch(keys=own + 1))[0][0, :10], x[0, :10])


def test_speed_changes_the_number_of_frames_within_its_bounds():
    n = 8200
    _, frames, _ = make(speed=0.2).train()(batch([n] * 100, keys=keys(100)))
    assert 1 + (n / 1.2 - 200) // 80 - 1 <= frames.min() < 90
    assert 115 < frames.max() <= 1 + (n / 0.8 - 200) // 80


def test_tempo_changes_the_number_of_frames_within_its_bounds():
    n = 8200
    _, before, _ = make()(batch([n], keys=keys(1)))
    _, frames, _ = make(tempo=0.5).train()(batch([n] * 100, keys=keys(100)))
    assert before[0] / 1.5 - 1 <= frames.min() < 0.8 * before[0]
    assert 1.2 * before[0] < frames.max() <= before[0] * 1.5 + 1


def test_tilt_adds_a_slope_and_a_bow_over_the_bands_the_same_in_every_frame():
    data = batch([4000] * 20, keys=keys(20))
    moved = make(normalisation="none", tilt=6.0).train()(data)[0] - make(normalisation="none")(data)[0]
    assert (moved - moved[:, :1]).abs().max() < 1e-9
    decibels = 10 * 4 * moved[:, 0] / np.log(10)  # the front end divides by 4
    assert 6 < decibels.abs().max() <= 12 + 1e-5  # slope and bow together
    assert decibels.std(0).min() > 1


def test_a_range_raises_what_is_further_below_the_loudest():
    x = make(normalisation="none", range_db=20.0)(batch([8000]))[0] * 4
    decibels = 10 * (x - x.max()) / np.log(10)
    assert decibels.min().item() == pytest.approx(-20)


def test_gain_moves_all_log_energies_of_a_row_alike():
    data = batch([4000] * 20, keys=keys(20))
    plain, loud = make(normalisation="none")(data)[0], make(normalisation="none", gain=6.0).train()(data)[0]
    moved = loud - plain  # natural logarithm of a power ratio
    assert (moved - moved[:, :1, :1]).abs().max() < 1e-9
    decibels = 10 * 4 * moved[:, 0, 0] / np.log(10)  # the front end divides by 4
    assert decibels.abs().max() <= 6 + 1e-5
    assert decibels.min() < -2 and decibels.max() > 2


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "options", "said"),
    [
        (8000, {"mels": 0}, r"model\.mels=0 is too small; use at least 1"),
        (8000, {"window_ms": 0.1}, r"model\.window_ms=0\.1 is out of range; use 1 to 1000 ms"),
        (8000, {"window_ms": float("nan")}, r"model\.window_ms=nan is out of range"),
        (8000, {"window_ms": 2000.0}, r"model\.window_ms=2000 is out of range"),
        (8000, {"hop_ms": 0.0}, r"model\.hop_ms=0 is out of range; use at least one sample \(0\.125 ms\)"),
        (8000, {"hop_ms": 30.0}, r"model\.hop_ms=30 is out of range; .* at most model\.window_ms=25"),
        (8000, {"speed": 0.9}, r"model\.speed=0\.9 is out of range; use a value in \[0, 0\.5\], 0 for none"),
        (8000, {"gain": -1.0}, r"model\.gain=-1\.0 is out of range; use a value in \[0, 60\], 0 for none"),
    ],
)
def test_options_that_cannot_be_are_refused(rate, options, said):
    with pytest.raises(ValueError, match=said):
        make(rate, **options)


@pytest.mark.parametrize(("rate", "mels"), [(8000, 120), (16000, 128), (48000, 400)])
def test_too_many_bands_are_refused_with_the_number_that_does(rate, mels):
    with pytest.raises(
        ValueError,
        match=rf"model\.mels={mels} is too many for model\.window_ms=25 at {rate} Hz: band "
        r"\d+ holds none .* use at most \d+, or a longer window",
    ) as error:
        make(rate, mels=mels)
    most = int(str(error.value).split("at most ")[1].split(",")[0])
    make(rate, mels=most)
    points = {8000: 256, 16000: 512, 48000: 2048}[rate]
    assert triangles(most, points, rate).any(0).all()
    assert not triangles(most + 1, points, rate).any(0).all()
