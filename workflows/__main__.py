"""python -m workflows COMMAND EXPERIMENT-or-BUNDLE [key=value ...]"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from workflows.errors import RondoError, UserError, user_mistakes

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on the last line.")
VERBOSE = click.option("--verbose", is_flag=True, help="Show Ray's messages, and tracebacks of errors.")


def command(group: click.Group, name: str, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command whose errors end in a message and an exit code: 2 wrong input, 130 Ctrl-C, 143 SIGTERM, 1 others."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def run(*args: object, as_json: bool = False, verbose: bool = False, **kwargs: object) -> None:
            start = time.time()
            if as_json and kwargs.get("output", "") is None:
                _fail("--json and predictions cannot both go to stdout; name a file for them with -o", 2)
            try:
                result = function(*args, verbose=verbose, **kwargs)
            except KeyboardInterrupt:
                _fail("stopped", 130)
            except SystemExit as stopped:  # Ray's answer to SIGTERM while nothing is trained yet
                _fail("stopped", 143 if stopped.code == signal.SIGTERM else 1)
            except Exception as error:
                _fail_by(error, verbose)
            if as_json and result is not None:
                from workflows.strict_json import dumps

                click.echo(dumps({**result, "wall_seconds": round(time.time() - start, 2)}))

        text = f"{inspect.getdoc(function)}\n\n\b\nExample:\n  {example}"
        return group.command(name, help=text)(JSON(VERBOSE(run)))

    return decorate


def _fail_by(error: Exception, verbose: bool) -> None:
    from datasets.pipeline.storage import Unavailable

    if verbose:
        traceback.print_exc()
    if isinstance(error, RondoError | Unavailable):
        _fail(str(error), getattr(error, "exit_code", 1))
    _fail(f"{type(error).__name__}: {error}" + ("" if verbose else "\n(--verbose shows where)"), 1)


def _fail(text: str, code: int) -> None:
    from datasets.pipeline.storage import mask

    click.echo(f"error: {mask(text)}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Rondo: train sequence models with Ray.

    \b
    EXPERIMENT is a YAML file (see workflows/experiments/); without one, the default on synthetic data.
    key=value changes one option, such as model.family=lstm training.epochs=3.
    """


EXPERIMENT = click.argument("words", nargs=-1, metavar="[EXPERIMENT] [KEY=VALUE]...")


def _split(words: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """The experiment, if one is named, and the overrides."""
    files = [w for w in words if "=" not in w or "/" in w.partition("=")[0]]
    if len(files) > 1:
        raise UserError(f"one experiment at a time, not {len(files)}: {', '.join(files)}; options are key=value")
    return (files[0] if files else None), [w for w in words if w not in files]


RESUME = click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    default=None,
    metavar="[RUN]",
    help="Continue one that was stopped: its name or folder, or without one the newest unfinished "
    "one of this experiment.",
)


def _with_resume(words: tuple[str, ...], resume: str | None) -> tuple[str | None, list[str], str | None]:
    """The experiment, if one is named, the overrides, and what to resume."""
    if resume is not None and ("=" in resume or resume.endswith((".yaml", ".yml"))):  # --resume took the next word
        words, resume = (resume, *words), "latest"
    return (*_split(words), resume)


@EXPERIMENT
@RESUME
def train(words: tuple[str, ...], resume: str | None, verbose: bool) -> dict[str, Any]:
    """Train a model, and leave a bundle, pictures and an MLflow run."""
    from workflows.train import train as run

    experiment, overrides, resume = _with_resume(words, resume)
    return run(experiment, overrides=overrides, resume=resume, verbose=verbose)


@EXPERIMENT
@RESUME
def search(words: tuple[str, ...], resume: str | None, verbose: bool) -> dict[str, Any]:
    """Search hyperparameters as the experiment's section `search` says, and leave the best bundle and a report."""
    from workflows.search import search as run

    experiment, overrides, resume = _with_resume(words, resume)
    return run(experiment, overrides=overrides, resume=resume, verbose=verbose)


@EXPERIMENT
def prepare(words: tuple[str, ...], verbose: bool) -> dict[str, Any]:
    """Read, check and encode the data, once; runs with the same data and options share it."""
    from workflows.prepare import prepare_only

    experiment, overrides = _split(words)
    return prepare_only(experiment, overrides, verbose=verbose)


@click.argument("bundle")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--split", default="test", show_default=True, help="Which split: train, validation or test.")
def evaluate(bundle: str, overrides: tuple[str, ...], split: str, verbose: bool) -> dict[str, Any]:
    """Compute the metrics of a bundle on a split of its data, or of other data given by dataset.path=..."""
    from workflows.evaluate import evaluate as run

    return run(bundle, list(overrides), split=split, verbose=verbose)


@click.argument("bundle")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    default=None,
    help="CSV or Parquet file to write, of music a MIDI file (.mid); without it, CSV or the text on stdout.",
)
@click.option("--samples", type=int, default=None, help="Task generate: continuations of each prompt.  [default: 1]")
@click.option(
    "--length", type=int, default=None, help="Task generate: maximum number of steps of each.  [default: 200]"
)
@click.option(
    "--prompt", type=int, default=None, help="Task generate: steps of each row to start from.  [default: all]"
)
@click.option(
    "--temperature",
    type=float,
    default=None,
    help="Task generate: below 1 likely steps become likelier, 0 takes the likeliest.  [default: 1]",
)
@click.option("--top-k", type=int, default=None, help="Task generate: draw from the K likeliest steps only.")
@click.option(
    "--top-p",
    type=float,
    default=None,
    help="Task generate: draw from the likeliest steps that together have this probability only.",
)
@click.option("--seed", type=int, default=None, help="Task generate: another seed, other draws.  [default: 0]")
def predict(bundle: str, source: str, output: str | None, verbose: bool, **generation: Any) -> dict[str, Any] | None:
    """Apply a bundle to raw input: a table, a folder, a sound file, or a sentence itself.

    Time series: what comes after the last row of every series. Task generate: SOURCE, or each of its rows, and what
    may follow. Else a row for each row or sound of SOURCE.
    """
    from models.sampling import Sampling
    from workflows.predict import GenerationOptions
    from workflows.predict import predict as run

    given = {name: value for name, value in generation.items() if value is not None}
    own = {name: given.pop(name) for name in ("samples", "length", "prompt") if name in given}
    with user_mistakes():
        how = GenerationOptions(**own, sampling=Sampling(**given)) if own or given else None
    return run(bundle, source, output, generation=how)


@EXPERIMENT
@RESUME
@click.option("--families", default="rnn,lstm,gru,transformer", show_default=True, help="Which families, by commas.")
def compare(words: tuple[str, ...], resume: str | None, families: str, verbose: bool) -> dict[str, Any]:
    """Search every family with the same budget, train the best settings again, and say which family is best."""
    from workflows.compare import compare as run

    experiment, overrides, resume = _with_resume(words, resume)
    return run(experiment, overrides, families=families.split(","), resume=resume, verbose=verbose)


@click.argument("run")
def report(run: str, verbose: bool) -> dict[str, Any]:
    """Write the report of a run, a search or a comparison again: RUN is its folder or URI."""
    from workflows.reporting.page import write
    from workflows.runs import open_storage

    page = write(open_storage(run))
    click.echo(page, err=True)
    return {"report": page}


@click.argument("folder", default="runs")
@click.argument("overrides", nargs=-1, metavar="[tracking.uri=URI]")
def sync(folder: str, overrides: tuple[str, ...], verbose: bool) -> dict[str, Any]:
    """Deliver to MLflow what it has not received yet: FOLDER is a run, or the storage of all runs.

    Runs keep their record on disk while MLflow is not reachable. tracking.uri=URI delivers to another server than
    the experiment's.
    """
    from workflows.sync import sync as run

    wrong = [word for word in overrides if not word.startswith("tracking.uri=")]
    if wrong:
        raise UserError(f"{wrong[0]}: sync takes a folder and tracking.uri=URI")
    return run(folder, uri=overrides[-1].partition("=")[2] if overrides else None)


def schema(verbose: bool) -> None:
    """Print the JSON schema of an experiment file, for editors."""
    from workflows.config.schema import schema as build_schema
    from workflows.strict_json import dumps

    click.echo(dumps(build_schema(), indent=1))


for _name, _function, _example in (
    ("train", train, "python -m workflows train workflows/experiments/etth1.yaml model.family=lstm"),
    ("prepare", prepare, "python -m workflows prepare workflows/experiments/etth1.yaml"),
    ("evaluate", evaluate, "python -m workflows evaluate runs/RUN/bundle --split test --json"),
    ("predict", predict, "python -m workflows predict runs/RUN/bundle new.csv -o forecast.csv"),
    ("search", search, "python -m workflows search workflows/experiments/etth1.yaml search.trials=24"),
    ("compare", compare, "python -m workflows compare workflows/experiments/demand.yaml"),
    ("report", report, "python -m workflows report runs/RUN"),
    ("sync", sync, "python -m workflows sync runs"),
    ("schema", schema, "python -m workflows schema > experiment.schema.json"),
):
    command(main, _name, _example)(_function)

if __name__ == "__main__":
    if __package__ != "workflows" or not os.path.isfile(os.path.join("workflows", "__main__.py")):
        _fail("start Rondo from its own folder as `python -m workflows ...`, so that all nodes run the same code", 2)
    main()
