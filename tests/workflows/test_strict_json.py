"""JSON that any program can read."""

import json
import math

import click
import numpy as np
import pytest
from click.testing import CliRunner

from datasets.pipeline.storage import Storage
from workflows import strict_json
from workflows.__main__ import command, main
from workflows.tuning.ledger import Ledger, TrialRecord


def strictly(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_becomes_null_however_deep_and_all_else_stays():
    values = {
        "a": [1, 2.5, math.nan, {"b": (math.inf, -math.inf)}],
        "c": np.float64("nan"),
        "d": None,
        "e": "NaN",
        "f": True,
    }
    assert strictly(strict_json.dumps(values)) == {
        "a": [1, 2.5, None, {"b": [None, None]}],
        "c": None,
        "d": None,
        "e": "NaN",
        "f": True,
    }
    assert math.isnan(values["a"][2])  # the value itself is not changed


def test_null_among_numbers_is_read_as_nan():
    values = strict_json.none_to_nan(strictly(strict_json.dumps({"a": [{"b": math.nan, "c": 1.5}]})))
    assert math.isnan(values["a"][0].pop("b")) and values == {"a": [{"c": 1.5}]}


def test_the_json_of_a_command_has_null_for_what_is_not_finite():
    @click.group()
    def group():
        pass

    def measure(verbose):
        """Measure."""
        return {"metrics": {"test/mse": math.nan, "test/perplexity": math.inf}, "rows": 3}

    command(group, "measure", "measure")(measure)
    printed = strictly(CliRunner().invoke(group, ["measure", "--json"]).stdout)
    assert printed["metrics"] == {"test/mse": None, "test/perplexity": None} and printed["rows"] == 3


def test_the_schema_is_json_that_any_program_reads():
    assert strictly(CliRunner().invoke(main, ["schema"]).stdout)["title"] == "Rondo experiment"


@pytest.mark.parametrize("dumps", [json.dumps, strict_json.dumps])  # the first: of older versions
def test_the_ledger_of_a_search_reads_back_what_is_not_finite(tmp_path, dumps):
    record = TrialRecord(
        0,
        "",
        "search",
        history=[{"epoch": 0.0, "validation/mse": math.nan}],
        metrics={"test/mse": math.nan},
        baselines={"naive": {"test/mse": math.nan}},
    )
    Ledger(Storage(tmp_path)).write(record)
    (file,) = tmp_path.rglob("trial.json")
    file.write_text(dumps(strictly(file.read_text()) | {"metrics": record.metrics}))
    (read,) = Ledger(Storage(tmp_path)).records
    assert math.isnan(read.history[0]["validation/mse"]) and read.history[0]["epoch"] == 0
    assert math.isnan(read.metrics["test/mse"]) and math.isnan(read.baselines["naive"]["test/mse"])
    assert read.best is None
