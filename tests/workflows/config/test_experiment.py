"""The experiment file: what is accepted, what is refused, and with which words."""

import dataclasses
import json
import re
from pathlib import Path

import jsonschema
import pydantic
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from datasets.shared.options import RecordOptions
from models import families, frontends, tasks
from workflows.config import schema as schemas
from workflows.config.experiment import flatten
from workflows.config.load import FOLDER, load
from workflows.config.schema import documentation, model_of, schema
from workflows.config.settings import Quarantine, Storing, Tracking, Training, Workers
from workflows.config.yaml import Loader, parse

torch.set_num_threads(1)

FILES = sorted(FOLDER.glob("*.yaml"))
BUILDERS = [
    *(datasets.module(kind).build for kind in datasets.kinds()),
    *(families.module(name).build for name in families.names()),
    *(tasks.module(name).build for name in tasks.names()),
    *(frontends.module(name).build for name in frontends.names()),
    RecordOptions,
    Training,
    Workers,
    Quarantine,
    Tracking,
    Storing,
]
SMALL = """
name: small
dataset: {kind: generated, series: 2, days: 20}
task: {kind: forecast, lookback: 24, horizon: 4}
model: {family: gru, hidden_size: 8, patch: 4}
"""
WINDOWS = {"dataset": {"kind": "timeseries", "path": "some.csv", "targets": ["y"], "split": {"validation": 20}}}


def small(**sections):
    return {**yaml.safe_load(SMALL), **sections}


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return str(path)


def refusal(source, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(source, list(overrides))
    return str(caught.value)


# --- strict: every mistake names file, key, value and what is allowed ---------------------------------------------


def test_an_unknown_key_names_the_file_the_value_and_the_nearest_key(tmp_path):
    path = file(tmp_path, SMALL + "training: {epoch: 7}\n")
    message = refusal(path)
    assert message.startswith(f"{path}: training.epoch=7 is not known; did you mean training.epochs? known: ")
    assert "batch_size" in message


def test_an_unknown_section_names_the_nearest_one():
    assert "trainning={'epochs': 3} is not known; did you mean training? known: dataset" in refusal(
        small(trainning={"epochs": 3})
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("dataset", "kind", "timeserie", "dataset.kind='timeserie' is not known; did you mean 'timeseries'? known: "),
        (
            "task",
            "kind",
            "forcast",
            "task.kind='forcast' is not known; did you mean 'forecast'? known: classify, forecast, generate, label, ",
        ),
        (
            "model",
            "family",
            "Transformr",
            "model.family='Transformr' is not known; did you mean 'transformer'? known: gru",
        ),
        ("model", "family", ["gru"], "model.family=['gru'] is not known"),
        ("model", "family", None, "model.family=None is not known"),
    ],
)
def test_an_unknown_kind_task_or_family_lists_the_known_ones(section, key, value, said):
    assert said in refusal(small(**{section: {key: value}}))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs=ten", "training.epochs='ten' must be a whole number"),
        ("training.epochs=2.0", "training.epochs=2.0 must be a whole number"),
        ("training.epochs=true", "training.epochs=True must be a whole number"),
        ("training.learning_rate=fast", "training.learning_rate='fast' must be a number"),
        ("training.precision=fp8", "training.precision='fp8' must be one of fp32, bf16, fp64"),
        ("training.batch_tokens=a", "training.batch_tokens='a' must be a whole number or null"),
        ("model.bidirectional=yes", "model.bidirectional='yes' must be true or false"),
        ("task.quantiles=0.5", "task.quantiles=0.5 must be a list, each a number"),
        ("training=3", "training=3 must be a mapping of options"),
        ("training=0", "training=0 must be a mapping of options"),
        (
            "task=forecast",
            "task='forecast' must be a mapping of options; give it at least kind, one of classify, forecast, ",
        ),
        ("model=null", "model is missing; give it at least family, one of gru"),
        ("name=3", "name=3 must be a text"),
        ("name=a/b", "name='a/b' may hold letters, digits and _ . -"),
        ("storage=''", "storage='' must be a text"),
        ("storage=s3://me:very@bucket/runs", "storage has a user, key or token in it, which all results would repeat"),
        ("storage=abfss://runs@account.dfs.core.windows.net/?sas_token=very", "storage has a user, key or token in it"),
        ("training.seed=99999999999999999999", "training.seed=99999999999999999999 is too large; use less than 2**63"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(override, said):
    assert said in refusal(small(), override)


@pytest.mark.parametrize(
    "setting",
    [
        "training.epochs=0",
        "training.batch_size=0",
        "training.batch_tokens=0",
        "training.learning_rate=0",
        "training.learning_rate=.nan",
        "training.learning_rate=.inf",
        "training.weight_decay=-1",
        "training.warmup=1.0",
        "training.warmup=.nan",
        "training.plateau_epochs=0",
        "training.patience=-1",
        "training.clip=-1e-3",
        "training.accumulate=0",
        "training.seed=-1",
        "training.checkpoint_steps=-1",
        "training.log_steps=0",
        "workers.count=0",
        "workers.cpus=0",
        "workers.gpus=-1",
        "workers.failures=-1",
        "workers.wait=-1",
        "tracking.system_seconds=-1",
        "dataset.shuffle_bytes=0",
        "dataset.cache_bytes=-1",
        "dataset.shard_bytes=0",
        "dataset.seed=-1",
        "dataset.series=0",
        "dataset.days=13",
        "task.lookback=0",
        "task.horizon=0",
        "task.dropout=1.0",
        "task.lookback=-4",
        "model.hidden_size=0",
        "model.layers=0",
        "model.dropout=1",
        "model.patch=0",
        "model.patch=-4",
    ],
)
def test_a_value_out_of_range_is_refused_and_named(setting):
    key, _, value = setting.partition("=")
    message = refusal(small(), setting)
    assert key in message
    assert str(parse(value)) in message


def test_a_missing_option_says_what_it_is_for():
    message = refusal(small(dataset={"kind": "timeseries", "path": "some.csv"}))
    assert "dataset.targets is missing: columns to forecast." in message


def test_all_mistakes_are_told_at_once():
    message = refusal(small(), "training.epoch=7", "model.layer=2", "workers.count=x", "task.kind=no")
    assert len(message.splitlines()) == 4
    assert refusal(small(**WINDOWS), "dataset.path=3").count("dataset.path") == 1  # neither a text nor a mapping


# --- combinations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.lookback=25"], "model.patch=4 does not divide task.lookback=25; use a divisor such as 5"),
        (["task.lookback=13"], "model.patch=4 does not divide task.lookback=13; use a divisor such as 1"),
        (["model.patch=48"], "model.patch=48 does not divide task.lookback=24; use a divisor such as 24"),
        (["task.lookback=1000000007"], "use a divisor such as 1"),
        (
            ["training.batch_size=1", "workers.count=2"],
            "training.batch_size=1 is smaller than workers.count=2; use at least 2, or fewer workers",
        ),
        (
            ["task={kind: regress}"],
            "task.kind='regress' cannot be trained on dataset.kind='generated' with series; what can: forecast",
        ),
        (
            ["dataset={kind: random_sequences}", "model={family: gru}"],
            "task.kind='forecast' cannot be trained on dataset.kind='random_sequences' with numbers; what can: regress",
        ),
        (["model={family: transformer, hidden_size: 10, heads: 4, patch: 4}"], "model.heads=4"),
        (
            ["task.loss=quantile", "task.quantiles=[0.1, 0.9]"],
            "task.quantiles=[0.1, 0.9] must lie between 0 and 1 and hold 0.5",
        ),
        (["training.batch_tokens=10"], "training.batch_tokens has no meaning for windows"),
        (["model.hidden_size=100000000000"], "a model of these sizes cannot be built"),
        (["dataset={kind: timeseries, path: a.csv, targets: [y]}"], "dataset.split has no validation"),
        (
            ["dataset={kind: timeseries, path: a.csv, targets: [y], split: {validation: .nan}}"],
            "dataset.split.validation=nan",
        ),
    ],
)
def test_an_impossible_combination_is_refused_before_anything_starts(overrides, said):
    message = refusal(small(), *overrides)
    assert said in message
    assert message.startswith("experiment: ")


# --- YAML --------------------------------------------------------------------------------------------------------

FAMILIES = {
    "family": "gru",
    "patch": 4,
    "hidden_size": 8,
    "families": {"gru": {"layers": 2}, "transformer": {"heads": 2, "hidden_size": 16}},
}


def test_options_of_one_family_hold_for_it_only_and_over_the_shared_ones():
    gru, transformer = (load(small(model=FAMILIES), [f"model.family={name}"]).model for name in ("gru", "transformer"))
    assert (gru["layers"], gru["hidden_size"]) == (2, 8)
    assert (transformer["heads"], transformer["hidden_size"], "families" in transformer) == (2, 16, False)


def test_an_override_wins_over_the_options_of_one_family():
    assert load(small(model=FAMILIES), ["model.layers=3"]).model["layers"] == 3
    assert load(small(model=FAMILIES), ["model.family=transformer", "model.hidden_size=4"]).model["hidden_size"] == 4


@pytest.mark.parametrize(
    ("families", "said"),
    [
        ({"transfromer": {}}, "model.families.transfromer={} is not known; did you mean model.families.transformer?"),
        ({"transformer": {"haeds": 2}}, "model.families.transformer.haeds=2 is not known"),
        ({"transformer": 2}, "must be a mapping of families to mappings"),
    ],
)
def test_a_mistake_in_the_options_of_another_family_is_told(families, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        load(small(model={**FAMILIES, "families": families}))


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path):
    message = refusal(file(tmp_path, SMALL + "training: {epochs: 3, epochs: 4}\n"))
    assert "small.yaml: not a readable YAML file" in message
    assert "key 'epochs' is duplicated" in message
    assert "line 6" in message


def test_a_section_that_stands_twice_is_refused(tmp_path):
    assert "key 'model' is duplicated" in refusal(file(tmp_path, SMALL + "model: {family: rnn}\n"))


def test_tags_that_would_make_objects_are_refused(tmp_path):
    seen = tmp_path / "seen"
    for tag in (f"!!python/object/apply:os.mkdir ['{seen}']", "!!python/name:os.system ''", "!new {a: 1}"):
        assert "could not determine a constructor" in refusal(file(tmp_path, SMALL + f"storage: {tag}\n"))
        assert "could not determine a constructor" in refusal(small(), f"storage={tag}")
    assert not seen.exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("2.0e-3", 2e-3),
        ("1e3", 1000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("0x10", 16),
        ("-3", -3),
        (".inf", float("inf")),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("False", False),
        ("2016-01-01", "2016-01-01"),
        ("12:30", "12:30"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("010", "010"),
        ("1.2.3", "1.2.3"),
        ("1.\u0665", "1.\u0665"),
        ("'1e-3'", "1e-3"),
        ("[1, 1e1, a]", [1, 10.0, "a"]),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
        ("{a: &x {n: 1}, b: *x, c: {<<: *x, m: 2}}", {"a": {"n": 1}, "b": {"n": 1}, "c": {"n": 1, "m": 2}}),
    ],
)
def test_yaml_values_are_read_by_version_1_2(text, value):
    assert parse(text) == value
    assert type(parse(text)) is type(value)


def laughs(levels: int, first: str, one: str, times: int = 9) -> str:
    """YAML in which each line stands for `times` of the line before, so that the last one is times ** levels."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {one.format(', '.join([f'*a{i - 1}'] * times))}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        laughs(7, "[x, x]", "[{}]"),
        laughs(7, "{x: 1}", "{{x: [{}]}}"),
        laughs(7, "{x: 1}", "{{<<: [{}], y: 1}}"),
        laughs(1500, "[x]", "[{}]", times=2),
        re.sub(r"(?m)^a\d+: ", "? ", laughs(7, "[x, x]", "[{}]")),  # keys, which a message would write out
        f"a: &a {'long ' * 20_000}\nb: [{', '.join(['*a'] * 1000)}]\n",
    ],
)
def test_aliases_that_stand_for_too_many_values_are_refused(tmp_path, text):
    message = refusal(file(tmp_path, SMALL + text))
    assert "small.yaml: not a readable YAML file: " in message
    assert "its aliases (*NAME) expand to more than 10,000 values" in message and len(message) < 400


def test_aliases_that_stand_for_many_values_and_long_lists_are_read():
    assert parse(laughs(4, "[x, x]", "[{}]"))["a3"][8][8][8] == ["x", "x"]
    assert len(parse(f"a: [{'1, ' * 11_000}]\nb: &b [1, 2]\nc: [*b, *b]\n")["a"]) == 11_000


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "*a",
        "{[1]: 2}",
        "&x [*x]",
        "!!timestamp x",
        "!!int x",
        "\x00",
        "{a: 1, 'a': 2}",
        "{1: a, '1': b}",
        "{" * 2000,
    ],
)
def test_what_is_no_yaml_is_refused_naming_the_override(text):
    assert repr(f"storage={text}") in refusal(small(), f"storage={text}")


@pytest.mark.parametrize("content", [b"", b"- 1\n- 2\n", b"just text", b"\xff\xfe\x00", b"a: [1\n"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: ")


def test_a_missing_file_names_the_nearest_experiment():
    assert refusal("etth.yaml") == "etth.yaml: no such experiment file; did you mean workflows/experiments/etth1.yaml?"


# --- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_set_nested_values_null_and_lists():
    made = load(
        small(),
        [
            "training.epochs=3",
            "training.learning_rate=1e-2",
            "tracking.experiment=null",
            "task.loss=quantile",
            "task.quantiles=[0.25, 0.5]",
            "workers={count: 2, cpus: 1}",
            "model.family=lstm",
            "storage=s3://bucket/runs?region=a=b",
        ],
    )
    assert (made.training.epochs, made.training.learning_rate, made.tracking.experiment) == (3, 1e-2, None)
    assert made.task["quantiles"] == [0.25, 0.5]
    assert made.workers == Workers(count=2, cpus=1)
    assert (made.model["family"], made.model["hidden_size"]) == ("lstm", 8)
    assert made.storage == "s3://bucket/runs?region=a=b"  # only the first = separates


def test_a_section_without_options_may_be_overridden_at_any_depth(tmp_path):
    text = SMALL.replace("{family: gru, hidden_size: 8, patch: 4}", "") + "training:\nsearch:\n  space:\n"
    path = file(tmp_path, text)
    made = load(
        path,
        [
            "training.epochs=3",
            "model.family=gru",
            "model.families.gru.patch=4",
            "search.space.training.learning_rate={loguniform: [1e-4, 1e-2]}",
        ],
    )
    assert (made.training.epochs, made.model["family"], made.model["patch"]) == (3, "gru", 4)
    assert made.search.space == {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    assert load(small(), ["training=", "training.epochs=3"]).training.epochs == 3
    none = {**FAMILIES, "families": {"gru": None}}
    assert load(small(model=none), ["model.families.gru.layers=2"]).model["layers"] == 2
    assert load(small(model=none, training=None)).model["layers"] == 1


def test_a_later_override_wins_and_the_given_mapping_stays_as_it_was():
    given_ = small(training={"epochs": 1})
    assert load(given_, ["training.epochs=2", "training.epochs=3"]).training.epochs == 3
    assert given_ == small(training={"epochs": 1})


@pytest.mark.parametrize("text", ["training.epochs", "=3", "training.=3", ".epochs=3", "training..epochs=3", ""])
def test_what_is_no_override_is_refused_with_an_example(text):
    assert refusal(small(), text) == f"{text!r} is no override; write section.key=value, such as model.family=lstm"


def test_an_override_below_a_value_is_refused():
    assert refusal(small(), "name.x=1") == "'name.x=1': name is not a section"


KEYS = [*dict(flatten(load(small()).plain())), "search", "model.heads", "training.epoch", "dataset", "training", "x.y"]
WORDS = ["forecast", "regress", "timeseries", "random_sequences", "transformer", "joint", "${HOME}"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.floats(width=16)
    | st.integers(2**62, 2**70)
    | st.text(max_size=6)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=4,
)
TEXTS = VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True)) | st.text(max_size=12)


@settings(max_examples=80, derandomize=True, database=None, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), TEXTS), min_size=1, max_size=3))
def test_any_override_is_either_taken_or_a_value_error(pairs):
    try:
        made = load(small(), [f"{key}={text}" for key, text in pairs])
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(made.training, Training)


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(st.text(max_size=12) | st.dictionaries(st.sampled_from(["name", "dataset", "task", "model", "x"]), VALUES))
def test_any_content_is_either_taken_or_a_value_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load(path)


# --- environment variables ---------------------------------------------------------------------------------------


def test_a_path_may_name_an_environment_variable(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data/here")
    made = load(small(**WINDOWS), ["dataset.path={train: '${SOMEWHERE}/a.csv', test: '${SOMEWHERE}/b.csv'}"])
    assert made.dataset["path"] == {"train": "/data/here/a.csv", "test": "/data/here/b.csv"}


def test_a_variable_that_is_not_set_is_refused_by_name(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    assert refusal(small(**WINDOWS), "dataset.path=${NOWHERE}/a.csv") == (
        "experiment: '${NOWHERE}/a.csv' names the environment variable NOWHERE, which is not set; export NOWHERE=..."
    )


def test_the_data_folder_is_data_unless_it_is_set(monkeypatch):
    monkeypatch.delenv("RONDO_DATA", raising=False)
    assert load(FOLDER / "etth1.yaml").dataset["path"] == "data/etth1/ETTh1.csv"
    monkeypatch.setenv("RONDO_DATA", "/mnt")
    assert load(FOLDER / "etth1.yaml").dataset["path"] == "/mnt/etth1/ETTh1.csv"


# --- the files, and going round ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_experiment_loads_and_its_first_line_runs_it(path):
    relative = path.relative_to(FOLDER.parents[1]).as_posix()
    commands = ("train", "compare", "search")
    assert path.read_text().splitlines()[0] in [f"# python -m workflows {c} {relative}" for c in commands]
    made = load(path)
    assert made.name == path.stem
    assert made.source == str(path)


def test_without_a_file_the_default_needs_none():
    made = load()
    assert made.dataset["kind"] in ("generated", "random_sequences")
    assert load(None, ["model.family=rnn"]).model["family"] == "rnn"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("family", families.names())
def test_what_is_written_out_loads_as_the_same_experiment(path, family, tmp_path):
    shared = {k: v for k, v in load(path).model.items() if k == "patch"}
    made = load(path, [f"model={json.dumps({'family': family, **shared})}"])
    again = load(made.plain())
    assert dataclasses.replace(again, source=made.source) == made
    written = load(file(tmp_path, made.text()))
    assert dataclasses.replace(written, source=made.source) == made


@pytest.mark.parametrize("text", ["1e5", "1e-3", "2016-01-01", "yes", "null", "12:30", "010", "a: b", "~", "<<", "#"])
def test_texts_that_look_like_values_stay_texts_when_written_out(text, tmp_path):
    made = load(small(**WINDOWS, storage=text))
    made = made.replace(dataset={**made.dataset, "missing_values": [text]})
    written = load(file(tmp_path, made.text()))
    assert (written.storage, written.dataset["missing_values"]) == (text, [text])


def test_a_mapping_is_read_like_a_file(tmp_path):
    from_file, from_mapping = load(file(tmp_path, SMALL)), load(small())
    assert from_mapping.source == "experiment"
    assert dataclasses.replace(from_mapping, source=from_file.source) == from_file


def test_a_dataset_and_its_storing_come_from_the_same_section():
    made = load(small(), ["dataset.shard_bytes=100", "dataset.days=30"])
    assert made.storing == Storing(shard_bytes=100)
    assert made.raw_dataset.days == 30


def test_flatten_gives_every_leaf_and_keeps_empty_mappings():
    assert dict(flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": {}, "f": None})) == {
        "a.b.c": 1,
        "a.d": [2],
        "e": {},
        "f": None,
    }


# --- schema and documentation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: f"{b.__module__}.{b.__name__}")
def test_every_option_is_documented_and_no_other(builder):
    options = {parameter.name for parameter in schemas.options_of(builder)}
    said = documentation(builder)
    assert set(said) - schemas.INTERNAL_ARGUMENTS == options
    assert all(len(said[name]) > 5 for name in options)


def test_the_schema_is_valid_and_holds_every_option_with_its_description():
    made = json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(made)
    sections = made["properties"]
    for section, key, names in (
        ("dataset", "kind", datasets.kinds()),
        ("task", "kind", tasks.names()),
        ("model", "family", families.names()),
    ):
        variants = {one["properties"][key]["const"]: one for one in sections[section]["oneOf"]}
        assert list(variants) == names
        for variant in variants.values():
            options = {name: one for name, one in variant["properties"].items() if name != key}
            assert all(one.get("description") for one in options.values()), variant
            assert variant["additionalProperties"] is False
    of = {one["properties"]["kind"]["const"]: set(one["properties"]) for one in sections["dataset"]["oneOf"]}
    assert of["generated"] >= {"shuffle_bytes", "seed"} and of["text"] >= {"tokenizer", "label", "split_column"}
    for section, kind in (
        ("training", Training),
        ("workers", Workers),
        ("tracking", Tracking),
        ("quarantine", Quarantine),
    ):
        assert set(sections[section]["properties"]) == {f.name for f in dataclasses.fields(kind)}
        assert all(one.get("description") for one in sections[section]["properties"].values())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_schema_accepts_each_experiment_and_refuses_a_typo(path):
    checker = jsonschema.Draft202012Validator(json.loads(json.dumps(schema())))
    options = yaml.load(path.read_text(), Loader=Loader)
    checker.validate(options)
    checker.validate(load(path).plain())
    assert not checker.is_valid({**options, "training": {"epoch": 3}})
    assert not checker.is_valid({**options, "modell": {}})
    assert not checker.is_valid({**options, "model": {"family": "gruu"}})


def test_defaults_and_types_of_options_come_from_the_builder():
    def build(input_size: int, *, size: int = 3, names: list[str]) -> None: ...

    model = model_of("thing", build)
    assert model(names=["a"]).model_dump() == {"size": 3, "names": ["a"]}  # input_size is handed on by the model
    for wrong in ({"names": "a"}, {"names": [], "size": "3"}, {}, {"names": ["a"], "input_size": 1}):
        with pytest.raises(pydantic.ValidationError):
            model(**wrong)
