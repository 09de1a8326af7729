"""Sentences, sounds and sensors from raw files to predictions, through the command line, in one Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from click.testing import CliRunner

from workflows.__main__ import main
from workflows.evaluate import evaluate
from workflows.train import train
from workflows.training.bundle import load as load_bundle

GOOD, BAD = ("good", "great", "fine"), ("bad", "poor", "awful")


@pytest.fixture(scope="module")
def folder(shared_ray, tmp_path_factory):
    return tmp_path_factory.mktemp("classify")


def experiment(folder, name, dataset, **sections):
    return {
        "name": name,
        "dataset": dataset,
        "task": {"kind": "classify"},
        "model": {"family": "gru", "hidden_size": 16},
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2},
        "storage": f"{folder}/runs",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "system_seconds": 0},
        **sections,
    }


def sentences(count, seed):
    rng = np.random.default_rng(seed)
    good = rng.random(count) < 0.5
    words = [f"the film number {rng.integers(9)} is {rng.choice(GOOD if g else BAD)}" for g in good]
    return [f'"{text}",{"pos" if g else "neg"}' for text, g in zip(words, good, strict=True)]


@pytest.fixture(scope="module")
def text(folder):
    """The result of a training on sentences, one of which is empty and one of a class that training never had."""
    for split, count, more in (("train", 200, ['"",pos']), ("validation", 60, []), ("test", 60, ['"a film",odd'])):
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *sentences(count, count), *more]) + "\n")
    options = experiment(
        folder,
        "text",
        {
            "kind": "text",
            "path": {s: f"{folder}/{s}.csv" for s in ("train", "validation", "test")},
            "label": "label",
            "tokenizer": "word",
            "vocabulary": 100,
        },
    )
    return train(options, progress=False)


def predict(bundle, source, *more):
    """The predictions as rows, and what is said on stderr."""
    done = CliRunner().invoke(main, ["predict", bundle, str(source), *more])
    assert done.exit_code == 0, done.output
    return pyarrow.csv.read_csv(pa.BufferReader(done.stdout.encode())).to_pylist(), done.stderr


def test_sentences_are_told_apart_and_the_record_names_what_was_set_aside(folder, text):
    assert text["metrics"]["test/accuracy"] > 0.9 > text["baselines"]["majority"]["test/accuracy"]
    assert text["maximise"] and text["primary"] == "accuracy"
    aside = pq.read_table(next(Path(folder, "runs", "prepared").glob("text-*/quarantine.parquet"))).to_pylist()
    assert [(Path(r["uri"]).name, r["row"], r["field"]) for r in aside] == [
        ("test.csv", 62, "label"),
        ("train.csv", 202, "text"),
    ]
    assert "'odd' is no class of the training rows" in aside[0]["reason"]


def test_the_best_epoch_is_that_of_the_highest_accuracy(text):
    judged = [(h["validation/accuracy"], -h["validation/loss"]) for h in text["history"]]
    assert text["history"][judged.index(max(judged))]["step"] == text["best_step"]


def test_a_confusion_picture_is_made_and_holds_every_test_row(folder, text):
    run = Path(folder, "runs", text["run"])
    assert (run / "pictures" / "confusion.png").stat().st_size > 5000
    last = json.loads((run / "artifacts.json").read_text())[-1]
    assert (last["split"], np.sum(last["arrays"]["matrix"])) == ("test", 60)


def test_a_sentence_and_a_file_of_them_are_classified(folder, text):
    rows, _ = predict(text["bundle"], "the film is great")
    assert rows[0]["class"] == "pos" and 0.5 < rows[0]["probability"] <= 1
    (folder / "new.csv").write_text('text,other\n"is awful",1\n"",2\n"is fine",3\n')
    rows, said = predict(text["bundle"], folder / "new.csv")
    assert [r["class"] for r in rows] == ["neg", "", "pos"]
    assert [r["row"] for r in rows] == [2, 3, 4]
    assert rows[1]["skipped"] == "text: empty" and "1 of 3 rows were skipped" in said


def test_predictions_do_not_depend_on_what_else_is_in_the_file(folder, text):
    lines = [line.rsplit(",", 1)[0] for line in sentences(150, 5)]
    (folder / "many.csv").write_text("\n".join(["text", *lines]) + "\n")
    together, _ = predict(text["bundle"], folder / "many.csv")
    for i in (0, 77, 149):
        alone, _ = predict(text["bundle"], lines[i].strip('"'))
        assert alone[0]["class"] == together[i]["class"]
        assert alone[0]["probability"] == pytest.approx(together[i]["probability"], abs=1e-5)


def test_a_file_without_rows_is_named(folder, text):
    (folder / "empty.csv").write_text("text,label\n")
    done = CliRunner().invoke(main, ["predict", text["bundle"], f"{folder}/empty.csv"])
    assert done.exit_code == 2 and f"{folder}/empty.csv holds no rows" in done.stderr


def test_a_missing_file_is_no_sentence(text):
    done = CliRunner().invoke(main, ["predict", text["bundle"], "reviews.csv"])
    assert done.exit_code == 2 and "there is no file or folder" in done.stderr


def test_other_data_is_measured_by_the_bundles_own_vocabulary_and_classes(folder, text):
    (folder / "other.csv").write_text("\n".join(["text,label", *sentences(50, 9), '"zebra good",pos']) + "\n")
    found = evaluate(text["bundle"], [f"dataset.path={{test: {folder}/other.csv}}"])
    assert found["rows"] == 51 and found["metrics"]["test/accuracy"] > 0.9
    same = evaluate(text["bundle"])
    assert same["metrics"]["test/accuracy"] == pytest.approx(text["metrics"]["test/accuracy"])


@pytest.mark.soak
def test_two_workers_reach_what_one_reaches(folder, text):
    two = train(
        experiment(
            folder,
            "text2",
            {
                "kind": "text",
                "path": {s: f"{folder}/{s}.csv" for s in ("train", "validation", "test")},
                "label": "label",
                "tokenizer": "word",
                "vocabulary": 100,
            },
            workers={"count": 2},
        ),
        progress=False,
    )
    assert two["steps"] == text["steps"]
    for name, value in text["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=0.02), name


@pytest.fixture(scope="module")
def sounds(folder):
    """A folder a class of low and high tones."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for name, hertz in (("low", 300), ("high", 900)):
            place = folder / "sounds" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                times = np.arange(rng.integers(1600, 4000)) / 8000
                tone = 0.3 * np.sin(2 * np.pi * hertz * times) + 0.05 * rng.normal(size=times.size)
                soundfile.write(place / f"{i}.wav", tone, 8000)
    options = experiment(
        folder,
        "sounds",
        {
            "kind": "audio",
            "path": {p: f"{folder}/sounds/{p}" for p in ("train", "test")},
            "rate": 8000,
            "label": "folder",
            "split": {"validation": 0.2},
        },
        model={
            "family": "lstm",
            "hidden_size": 16,
            "mels": 20,
            "normalisation": "none",
            "time_masks": 1,
            "frequency_masks": 1,
        },
        training={"epochs": 4, "batch_size": 16, "batch_seconds": 20.0, "learning_rate": 1e-2},
    )
    return train(options, progress=False)


def test_a_folder_a_class_of_sounds_is_learnt(sounds):
    assert sounds["metrics"]["test/accuracy"] > 0.9


def test_a_sound_and_a_folder_are_classified_and_what_is_no_sound_is_skipped(folder, sounds):
    place = folder / "sounds" / "test"
    rows, _ = predict(sounds["bundle"], place / "high" / "0.wav")
    assert [r["class"] for r in rows] == ["high"]
    (place / "low" / "broken.wav").write_text("no sound")
    rows, said = predict(sounds["bundle"], place)
    assert len(rows) == 21 and sum(r["class"] == "low" for r in rows) in range(8, 13)
    assert [Path(r["file"]).name for r in rows if r["skipped"]] == ["broken.wav"] and "1 of 21" in said


def test_a_budget_of_seconds_below_the_longest_sound_is_refused_before_there_is_a_run(folder, sounds):
    options = experiment(
        folder,
        "short",
        {
            "kind": "audio",
            "path": {p: f"{folder}/sounds/{p}" for p in ("train", "test")},
            "rate": 8000,
            "label": "folder",
            "split": {"validation": 0.2},
        },
        training={"batch_seconds": 0.1},
    )
    message = fails(folder, options)
    assert "training.batch_seconds=0.1 is less than the longest recording" in message and "use at least 0.5" in message
    assert not list(Path(folder, "runs").glob("short-*"))


def test_augmentation_is_off_in_a_bundle(folder, sounds):
    """The same sound has the same probability every time."""
    predictions = [predict(sounds["bundle"], folder / "sounds" / "test" / "low" / "1.wav")[0] for _ in range(2)]
    assert predictions[0] == predictions[1]
    assert not load_bundle_of(sounds).training


def load_bundle_of(result):
    from datasets.pipeline.storage import Storage

    return load_bundle(Storage(result["bundle"])).model


def sensor_rows(count, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        up = bool(rng.random() < 0.5)
        steps = np.arange(rng.integers(5, 20))
        values = np.stack([(steps if up else -steps) + rng.normal(size=steps.size), rng.normal(size=steps.size)], 1)
        rows.append(
            {
                "values": values.tolist(),
                "way": "up" if up else "down",
                "end": float(values[-1, 0]),
                "tags": ["up", "long"] if up and steps.size > 10 else ["down"],
                "each": ["high" if y > 0 else "low" for y in values[:, 1]],
            }
        )
    return rows


SENSORS = {"kind": "sequences", "split": {"validation": 0.2, "test": 0.2}}


@pytest.fixture(scope="module")
def sensors(folder):
    (folder / "sensors.jsonl").write_text("\n".join(json.dumps(row) for row in sensor_rows(300, 0)) + "\n")
    return {**SENSORS, "path": f"{folder}/sensors.jsonl"}


@pytest.mark.parametrize(
    ("options", "kind", "metric", "least", "columns"),
    [
        ({"label": "way"}, "classify", "accuracy", 0.9, {"class", "probability"}),
        ({"labels": "tags"}, "classify", "accuracy", 0.8, {"classes", "probabilities"}),
        ({"step_labels": "each"}, "label", "accuracy", 0.8, {"classes", "probabilities"}),
        ({"numbers": ["end"]}, "regress", "r2", 0.7, {"end"}),
    ],
)
def test_sensors_to_every_kind_of_target(folder, sensors, options, kind, metric, least, columns):
    made = experiment(
        folder,
        f"sensors-{kind}",
        {**sensors, **options},
        task={"kind": kind},
        training={"epochs": 8, "batch_size": 16, "learning_rate": 1e-2},
    )
    result = train(made, progress=False)
    assert result["metrics"][f"test/{metric}"] > least
    rows, _ = predict(result["bundle"], folder / "sensors.jsonl")
    assert columns < rows[0].keys() and len(rows) == 300
    if kind == "label":
        assert len(rows[0]["classes"].split()) == len(sensor_rows(1, 0)[0]["each"])


def fails(folder, options, *overrides):
    """What the command says of an experiment that cannot be."""
    file = folder / "wrong.yaml"
    file.write_text(yaml.safe_dump(options))
    done = CliRunner().invoke(main, ["train", str(file), *overrides])
    assert done.exit_code == 2, done.output
    return done.stderr


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("model", "patch", 4, "model.patch=4 is not known"),  # of another front end
        ("model", "mels", 40, "model.mels=40 is not known"),
        ("task", "kind", "regress", "what can: classify"),
        ("training", "batch_seconds", 10.0, "use training.batch_tokens"),
        ("training", "batch_tokens", 3, "less than the longest row"),
        ("training", "batch_seconds", float("inf"), "training.batch_seconds=inf is out of range"),
        ("dataset", "split_values", {"test": 5}, "must be a mapping to a list, each a text or a whole number"),
        ("dataset", "label", "lable", "has no column 'lable', did you mean 'label'?"),
        ("dataset", "label", None, "says nothing of what to predict"),
        ("dataset", "vocabulary", 2, "dataset.vocabulary=2 is too small"),
        ("quarantine", "limit", 0.0, "more than quarantine.limit=0.0 allows"),
        ("dataset", "path", {"train": "TRAIN"}, "the data has no validation split, only train;"),
    ],
)
def test_a_mistake_is_answered_with_key_value_and_remedy(folder, text, section, key, value, said):
    options = experiment(
        folder,
        "wrong",
        {
            "kind": "text",
            "path": {s: f"{folder}/{s}.csv" for s in ("train", "validation", "test")},
            "label": "label",
            "tokenizer": "word",
            "vocabulary": 100,
        },
    )
    options.setdefault(section, {})[key] = {"train": f"{folder}/train.csv"} if key == "path" else value
    message = fails(folder, options)
    assert said in message and "Traceback" not in message


def test_names_with_signs_of_mathematics_are_drawn_and_cut_texts_are_told(folder):
    (folder / "prices.csv").write_text(
        "text,label\n"
        + "".join(f"word {'much' if i % 2 else 'little'} and more,{'$_$' if i % 2 else '1^$2'}\n" for i in range(60))
    )
    result = train(
        experiment(
            folder,
            "prices",
            {
                "kind": "text",
                "path": f"{folder}/prices.csv",
                "label": "label",
                "tokenizer": "word",
                "vocabulary": 100,
                "max_length": 2,
                "split": {"validation": 0.2},
            },
        ),
        progress=False,
    )
    assert Path(folder, "runs", result["run"], "pictures", "confusion.png").exists()
    rows, said = predict(result["bundle"], "word much and more")
    assert rows[0]["class"] == "$_$" and "1 rows were longer than dataset.max_length=2" in said


def test_too_many_bad_rows_stop_the_run_and_show_the_first_ten(folder):
    (folder / "half.csv").write_text("\n".join(["text,label", *sentences(30, 0), *['"",pos'] * 15]) + "\n")
    options = experiment(
        folder,
        "half",
        {
            "kind": "text",
            "path": f"{folder}/half.csv",
            "label": "label",
            "tokenizer": "word",
            "vocabulary": 100,
            "split": {"validation": 0.2},
        },
    )
    message = fails(folder, options)
    assert "15 of 45 records cannot be used" in message and "and 5 more" in message
    assert f"{folder}/half.csv, row 32, text: empty" in message


def test_one_class_only_is_refused(folder):
    (folder / "one.csv").write_text("text,label\n" + "a film,pos\n" * 20)
    options = experiment(
        folder,
        "one",
        {
            "kind": "text",
            "path": f"{folder}/one.csv",
            "label": "label",
            "tokenizer": "word",
            "vocabulary": 100,
            "split": {"validation": 0.2},
        },
    )
    assert "column 'label' has one class only, 'pos'" in fails(folder, options)
