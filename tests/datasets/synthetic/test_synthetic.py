"""Synthetic data: reviews, dialled digits, gestures and demand have the properties that their docstrings state."""

import itertools
from collections import Counter

import numpy as np
import pytest
import soundfile
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import datasets
from datasets.pipeline.prepare import cache_key, prepare
from datasets.pipeline.prepared import Prepared, read_rows
from datasets.pipeline.storage import Storage
from datasets.shared.synthetic import Synthetic
from datasets.synthetic import dialled_digits, generated, gestures, reviews, telephone_numbers
from datasets.synthetic.dialled_digits import HIGH, KEYS, LOW, dial
from models.texts import count_errors
from tests.datasets.series import encoded

KINDS = {"reviews": ("text", "verdict"), "dialled_digits": ("sound", "digit"), "gestures": ("values", "gesture")}
CLASSES = {"reviews": 2, "dialled_digits": 10, "gestures": 5}


pytestmark = pytest.mark.usefixtures("shared_ray")


def generate(kind: str, count: int, *, seed: int = 0, **options) -> tuple[list, list[str]]:
    """(inputs, labels), without Ray."""
    dataset = datasets.build(kind, **options)
    assert isinstance(dataset, Synthetic)
    columns = dataset.generate(np.random.default_rng(seed), count)
    inputs, labels = (columns[name] for name in KINDS[kind])
    return list(inputs), list(labels)


def rows_of(prepared: Prepared, part: str) -> list[dict]:
    shards = prepared.parts[part].shards
    return read_rows(prepared.storage, shards, [None] * len(shards)).to_pylist()


# --- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_data_and_another_seed_other_data(tmp_path, kind):
    def prepared(name: str, **options) -> Prepared:
        return prepare(datasets.build(kind, rows=1500, **options), Storage(tmp_path / name))

    first, again, other = prepared("first", seed=3), prepared("again", seed=3), prepared("first", seed=4)
    assert first.digest == again.digest != other.digest
    assert first.key == again.key != other.key
    parts = {name: rows_of(first, name) for name in ("train", "validation", "test")}
    assert [len(rows) for rows in parts.values()] == [1200, 150, 150]
    everything = [str(row) for rows in parts.values() for row in rows]
    twice = sum(count - 1 for count in Counter(everything).values())
    assert twice <= (20 if kind == "reviews" else 0)  # no block repeats another
    assert len(first.state["fitted"]["classes"]["label"]) == CLASSES[kind]
    assert first.state["best"] == {"accuracy": 1 - {"reviews": 0.05, "dialled_digits": 0.03, "gestures": 0.04}[kind]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_part_of_the_key(kind):
    options = [{}, {"rows": 200}, {"seed": 1}, {"wrong": 0.1}, *([{"noise": 0.1}] if kind != "reviews" else [])]
    assert len({cache_key(datasets.build(kind, **changed)) for changed in options}) == len(options)


@pytest.mark.parametrize("wrong", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_wrong_labels_is_the_one_asked_for(kind, wrong):
    count = 300 if wrong == 0 else 1500 if kind == "dialled_digits" else 3000
    inputs, right = generate(kind, count, wrong=0.0)
    same, labels = generate(kind, count, wrong=wrong)
    assert [str(x) for x in inputs] == [str(x) for x in same]  # only the labels are others
    share = np.mean([a != b for a, b in zip(right, labels, strict=True)])
    assert share == pytest.approx(wrong, abs=4 * np.sqrt(wrong * (1 - wrong) / count))
    assert set(labels) == set(right)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_equally_frequent(kind):
    counts = Counter(generate(kind, 4000)[1])
    assert len(counts) == CLASSES[kind]
    mean = 4000 / CLASSES[kind]
    assert all(abs(count - mean) < 4.5 * np.sqrt(mean) for count in counts.values())


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("rows", (99, 0, -1)),
        ("seed", (-1,)),
        ("wrong", (-0.1, 0.5, 1.0, float("nan"))),
        ("noise", (-0.1, 11.0, float("nan"), float("inf"))),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_options_out_of_range_are_refused_by_name(kind, option, values):
    for value in values if (kind, option) != ("reviews", "noise") else ():
        with pytest.raises(ValueError, match=rf"dataset\.{option}={value}"):
            datasets.build(kind, **{option: value})


# --- reviews ------------------------------------------------------------------------------------------------------


def verdict(text: str) -> str:
    """What a reader says: the deciding opinion's word, turned round by a negation."""
    first, joint, second = next(
        text.removesuffix(" .").partition(f" , {word} ") for word in ("but", "although") if f" , {word} " in text
    )
    words = (second if "but" in joint else first).split()
    good, turned = words[-1] in reviews.GOOD, bool(set(words) & set(reviews.NOT))
    return "good" if good != turned else "bad"


def test_the_rule_tells_the_verdict_of_a_review():
    texts, verdicts = generate("reviews", 2000, wrong=0.0)
    assert [verdict(text) for text in texts] == verdicts


def test_no_word_tells_the_verdict_of_a_review():
    texts, verdicts = generate("reviews", 20_000, wrong=0.0)
    good = np.array(verdicts) == "good"
    vectors = CountVectorizer(token_pattern=r"\S+").fit(texts)
    counts = vectors.transform(texts).toarray().astype(float)  # (reviews, words)
    assert counts.shape[1] > 40
    spread = counts.std(0) * np.sqrt(1 / good.sum() + 1 / (~good).sum())
    apart = np.abs(counts[good].mean(0) - counts[~good].mean(0)) / np.where(spread > 0, spread, 1)
    assert apart.max() < 4, vectors.get_feature_names_out()[apart.argmax()]
    guessed = cross_val_score(LogisticRegression(max_iter=200), counts, good, cv=3).mean()
    assert guessed == pytest.approx(0.5, abs=0.02)


# --- dialled digits -----------------------------------------------------------------------------------------------


def detect(sound: np.ndarray, rate: int) -> str:
    """The digit whose two tones are loudest (a Goertzel filter for each)."""
    wave = np.asarray(sound, float)
    times = np.arange(len(wave)) / rate
    power = {hertz: abs(wave @ np.exp(-2j * np.pi * hertz * times)) for hertz in (*LOW, *HIGH)}
    return max(
        "1234567890",
        key=lambda key: (lambda row, column: power[LOW[row]] + power[HIGH[column]])(*divmod(KEYS.index(key), 3)),
    )


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_a_detector_of_the_two_tones_reaches_the_best_accuracy(wrong):
    sounds, labels = generate("dialled_digits", 1500, wrong=wrong)
    right = np.mean(
        [
            detect(sound, 8000) == digit
            for sound, digit in zip((sound.values.to_numpy() for sound in sounds), labels, strict=True)
        ]
    )
    assert right == pytest.approx(1 - wrong, abs=0.005 + 4 * np.sqrt(wrong * (1 - wrong) / 1500))


@pytest.mark.parametrize("key", KEYS)
def test_a_dialled_key_has_its_two_tones_only(key):
    sound = dial(np.random.default_rng(0), key, noise=0.0, rate=8000).astype(float)
    power = np.abs(np.fft.rfft(sound, 80_000)) ** 2  # a bin each 0.1 Hz
    row, column = divmod(KEYS.index(key), 3)
    for hertz, low, high in ((LOW[row], 600, 1050), (HIGH[column], 1100, 1600)):
        assert (low * 10 + power[low * 10 : high * 10].argmax()) / 10 == pytest.approx(hertz, abs=1)
    assert power[6000:16_000].sum() > 0.97 * power.sum()


def test_dialled_digits_have_the_stated_durations_and_loudness():
    sounds = [sound.values.to_numpy() for sound in generate("dialled_digits", 1500)[0]]
    seconds = np.array([len(sound) for sound in sounds]) / 8000
    assert 0.1 <= seconds.min() < 0.25 < 0.85 < seconds.max() <= 1.0
    loudest = np.array([np.abs(sound.astype(int)).max() for sound in sounds])
    assert loudest.min() > 500
    assert np.mean(loudest >= 32_767) < 0.01  # hardly one is clipped
    silent = dial(np.random.default_rng(1), "5", noise=0.0, rate=8000)
    assert silent[0] == silent[-1] == 0


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44_100, 2)])
@pytest.mark.parametrize("key", ["0", "7"])
def test_a_sound_file_of_a_dialled_digit_can_be_predicted_from(tmp_path, key, rate, channels):
    sound = dial(np.random.default_rng(2), key, noise=0.3, rate=rate)
    soundfile.write(tmp_path / "a.wav", np.stack([sound] * channels, 1), rate)
    [table] = dialled_digits.build().encode_request(str(tmp_path / "a.wav"), {"fitted": {}})
    [row] = table.to_pylist()
    assert row["skipped"] is None
    assert row["length"] == len(row["samples"]) == pytest.approx(len(sound) * 8000 / rate, abs=1)
    assert detect(np.array(row["samples"]), 8000) == key
    if (rate, channels) == (8000, 1):
        assert row["samples"] == sound.tolist()


def test_a_folder_with_a_bad_file_can_be_predicted_from(tmp_path):
    soundfile.write(tmp_path / "a.wav", dial(np.random.default_rng(2), "3", noise=0.3, rate=8000), 8000)
    (tmp_path / "b.wav").write_bytes(b"")
    rows = [
        row
        for table in dialled_digits.build().encode_request(str(tmp_path), {"fitted": {}})
        for row in table.to_pylist()
    ]
    assert [row["skipped"] for row in rows] == [None, f"path: {tmp_path / 'b.wav'} is empty (0 bytes)"]


# --- telephone numbers --------------------------------------------------------------------------------------------


def heard(sound: np.ndarray) -> str:
    """The number in a sound without noise: a digit where there are tones, a blank where a pause is long."""
    level = np.convolve(np.abs(sound.astype(float)), np.ones(160) / 160, "same")
    on = np.flatnonzero(level > 0.1 * level.max())
    runs = np.split(on, np.flatnonzero(np.diff(on) > 160) + 1)
    text = detect(sound[runs[0]], 8000)
    for before, after in itertools.pairwise(runs):
        text += " " * bool(after[0] - before[-1] > 0.2 * 8000) + detect(sound[after], 8000)
    return text


def test_who_hears_the_tones_and_the_pauses_writes_the_number():
    made_ = telephone_numbers.build(noise=0.0, wrong=0.0).generate(np.random.default_rng(0), 100)
    assert [heard(sound.values.to_numpy()) for sound in made_["sound"]] == made_["number"]


def test_the_best_error_rates_are_those_of_one_who_hears_every_digit():
    dataset = telephone_numbers.build(wrong=0.1, noise=0.0)
    made_ = dataset.generate(np.random.default_rng(1), 800)
    right = [heard(sound.values.to_numpy()) for sound in made_["sound"]]
    words, characters = count_errors(made_["number"], right)
    assert words[0] / words[1] == pytest.approx(dataset.best["wer"], abs=0.03)
    assert characters[0] / characters[1] == pytest.approx(dataset.best["cer"], abs=0.01)


# --- gestures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def circles() -> tuple[list[np.ndarray], np.ndarray]:
    """(gestures (T, 3) without noise, which of them are circles back)."""
    rng = np.random.default_rng(0)
    back = np.arange(3000) % 2 == 1
    return [gestures._gesture(rng, "circle back" if one else "circle", 0.0) for one in back], back


def guesses(features: np.ndarray, labels: np.ndarray) -> float:
    """How often a strong learner is right about gestures that it has not seen."""
    return float(cross_val_score(HistGradientBoostingClassifier(max_iter=50), features, labels, cv=3).mean())


def test_no_single_frame_tells_a_circle_from_a_circle_back(circles):
    shapes, back = circles
    frames = np.stack([shape[np.random.default_rng(i).integers(len(shape))] for i, shape in enumerate(shapes)])
    assert guesses(frames, back) == pytest.approx(0.5, abs=0.035)


def test_no_average_tells_a_circle_from_a_circle_back(circles):
    shapes, back = circles
    averages = np.stack([np.r_[shape.mean(0), (shape.T @ shape / len(shape)).ravel()] for shape in shapes])
    assert guesses(averages, back) == pytest.approx(0.5, abs=0.035)


def test_the_way_that_two_channels_turn_tells_a_circle_from_a_circle_back(circles):
    shapes, back = circles
    turns = np.array([np.sum(shape[:-1, 0] * shape[1:, 1] - shape[1:, 0] * shape[:-1, 1]) for shape in shapes])
    assert ((turns < 0) == back).all()


def test_gestures_have_the_stated_lengths_and_sizes():
    shapes, _ = generate("gestures", 1000)
    assert {len(frame) for shape in shapes for frame in shape} == {3}
    assert (min(map(len, shapes)), max(map(len, shapes))) == (30, 90)
    quiet = np.concatenate([np.asarray(x) for x in generate("gestures", 300, noise=0.0)[0]])
    assert np.abs(quiet).max() <= 1.4


# --- hourly demand -----------------------------------------------------------------------------------------------


def test_demand_depends_on_the_seed_only():
    state, series = encoded(generated.build(series=2, days=14, seed=1))
    again, same = encoded(generated.build(series=2, days=14, seed=1))
    other, _ = encoded(generated.build(series=2, days=14, seed=2))
    assert state == again
    assert state["best"] != other["best"]
    np.testing.assert_array_equal(series["place-00"], same["place-00"])
    assert (state["frequency"], state["channels"]["covariates"]) == ("1h", ["temperature"])


def test_the_best_error_of_demand_is_the_noise_of_its_formula():
    dataset = generated.build(series=8, days=60)
    state, series = encoded(dataset)
    errors = []
    for place, summary in enumerate(state["series"]):
        a, b = summary["bounds"]["test"]
        signal = (dataset.signal(place)[0] - summary["mean"][0]) / summary["std"][0]
        errors.append(series[summary["name"]][a:b, 0] - signal[a:b])
    assert np.mean(np.square(errors)) == pytest.approx(state["best"]["mse"], rel=0.1)
    assert np.mean(np.abs(errors)) == pytest.approx(state["best"]["mae"], rel=0.05)


def test_the_best_error_of_demand_is_reachable_from_the_inputs_of_a_model():
    dataset = generated.build(series=8, days=60)
    state, series = encoded(dataset)
    errors = []
    for summary in state["series"]:
        values, hour = series[summary["name"]].astype(float), np.arange(summary["length"])
        yesterday = np.roll(values[:, 1], generated.LAG)
        seasons = [f(2 * np.pi * k * hour / 24) for k in (1, 2) for f in (np.sin, np.cos)]
        weekend = (hour // 24) % 7 >= 5
        x = np.stack([np.ones(len(hour)), hour / len(hour), weekend, yesterday, *seasons], axis=1)
        end, (a, b) = summary["bounds"]["train"][1], summary["bounds"]["test"]
        weights = np.linalg.lstsq(x[generated.LAG : end], values[generated.LAG : end, 0])[0]
        errors.append(values[a:b, 0] - x[a:b] @ weights)
    assert np.mean(np.square(errors)) < 1.2 * state["best"]["mse"]


def test_demand_of_no_series_is_refused():
    with pytest.raises(ValueError, match=r"dataset.series=0 and dataset.days=60: at least 1 series of 14 days"):
        generated.build(series=0)
