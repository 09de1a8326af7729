"""The experiment: one YAML file, strictly checked against the options that datasets, families and tasks declare.

A section's options are the annotated arguments of what it configures: the ``build`` of a file in datasets/,
models/families/ or models/tasks/, a front end, or a settings class. Types, defaults and documentation are read from
there and nowhere else.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from datasets.storage import without_secrets
from workflows.settings import Quarantine, Search, Storing, Tracking, Training, Workers

if typing.TYPE_CHECKING:
    from datasets import RawDataset

FOLDER = Path(__file__).parent / "experiments"
DEFAULT = FOLDER / "demand.yaml"
ENVIRONMENT = {"RONDO_DATA": "data"}      # defaults of variables that a path may name
MOST_COPIES = 10_000                      # values that aliases may add to a file; few lines can stand for billions


@dataclass(frozen=True)
class Experiment:
    """One experiment, checked. Sections are plain values, ready to be written as YAML or JSON."""

    name: str
    dataset: dict[str, Any]
    task: dict[str, Any]
    model: dict[str, Any]
    training: Training = field(default_factory=Training)
    workers: Workers = field(default_factory=Workers)
    quarantine: Quarantine = field(default_factory=Quarantine)
    storage: str = "runs"
    tracking: Tracking = field(default_factory=Tracking)
    search: Search = field(default_factory=Search)
    source: str = ""                      # the file it was read from, for messages
    overrides: tuple[str, ...] = field(default=(), compare=False)       # what changed it, for messages

    def plain(self) -> dict[str, Any]:
        """What it says, as nested plain values; user names, passwords and keys in URIs are left out."""
        told = asdict(self)
        del told["source"], told["overrides"]
        if self.search == Search():                  # of no meaning to a single run
            del told["search"]
        public: dict[str, Any] = _each_text(told, without_secrets)
        return public

    def text(self) -> str:
        """The experiment as YAML, every option written out."""
        return yaml.dump(self.plain(), Dumper=_Dumper, sort_keys=False, width=100)

    def replace(self, **sections: Any) -> Experiment:
        return replace(self, **sections)


def load(source: str | Path | Mapping[str, Any] | None = None, overrides: list[str] | None = None) -> Experiment:
    """Read and check an experiment.

    Args:
        source: a YAML file, a mapping of its content, or None for the default experiment on embedded data.
        overrides: ``section.key=value``, the value in YAML; ``section.key=null`` sets a key to none.

    Raises:
        ValueError: every mistake, a line each: key, value, file, what is allowed, and the nearest known name.
    """
    where, told = read(source, overrides)
    problems: list[str] = []
    chosen = _sections(told, problems)
    if problems:
        raise ValueError("\n".join(f"{where}: {p}" for p in problems))
    try:
        made = Experiment(**chosen, source=where, overrides=tuple(overrides or ()))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    _check_combinations(made, where)
    return made


def read(source: str | Path | Mapping[str, Any] | None = None,
         overrides: list[str] | None = None) -> tuple[str, dict[str, Any]]:
    """Where it was read from, and what an experiment says before it is checked: overrides and variables put in.

    Raises:
        ValueError: no such file, no mapping, or an override that is none.
    """
    where, told = _read(source)
    for override in overrides or []:
        _override(told, override)
        _drop_for_families(told, override.partition("=")[0].strip())
    return where, _expand(told, where)


def dataset_of(experiment: Experiment) -> RawDataset:
    """The dataset that the experiment describes; its files are not touched yet."""
    import datasets
    common = {f.name for f in fields(Storing)}
    return datasets.build(**{k: v for k, v in experiment.dataset.items() if k not in common})


def task_of(experiment: Experiment, dataset: RawDataset) -> dict[str, Any]:
    """The task with ``target``: which of what the dataset offers it reads.

    Raises:
        ValueError: none of it.
    """
    from models import tasks

    kind = experiment.task["kind"]
    for target in tasks.module(kind).READS:
        if target in dataset.offers:
            return {**experiment.task, "target": target}
    able = [name for name in tasks.names() if set(tasks.module(name).READS) & set(dataset.offers)]
    raise ValueError(f"task.kind={kind!r} cannot be trained on dataset.kind={experiment.dataset['kind']!r} with "
                     f"{', '.join(dataset.offers)}; what can: {', '.join(able)}")


def storing_of(experiment: Experiment) -> Storing:
    """How its prepared data is stored and read."""
    return Storing(**{f.name: experiment.dataset[f.name] for f in fields(Storing)})


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment file, for editors."""
    from models import families, tasks

    def choice(key: str, names: list[str], of: Callable[[str], list[Any]]) -> dict[str, Any]:
        variants = []
        for name in names:
            one = model_of(name, *of(name)).model_json_schema()
            one["properties"] = {key: {"const": name}, **one.get("properties", {})}
            if key == "family":
                one["properties"]["families"] = {
                    "type": "object", "description": "Options that hold for one family only.",
                    "properties": {family: {"type": "object"} for family in names}, "additionalProperties": False}
            one["required"] = [key, *one.get("required", [])]
            variants.append(one)
        return {"oneOf": variants}

    sections = {"name": {"type": "string"},
                "dataset": choice("kind", dataset_kinds(), _dataset_builders),
                "task": choice("kind", tasks.names(), lambda n: [tasks.module(n).build]),
                "model": choice("family", families.names(), _model_builders),
                "storage": {"type": "string", "description": "Folder or URI that runs and prepared data go to."}}
    for key, settings in SETTINGS.items():
        sections[key] = model_of(key, settings).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Rondo experiment", "type": "object",
            "properties": sections, "required": ["name", "dataset", "task", "model"], "additionalProperties": False}


def documentation(builder: Callable[..., Any]) -> dict[str, str]:
    """What a docstring's ``Args:`` (or ``Attributes:``) says of each argument."""
    text = inspect.getdoc(builder) or ""
    found = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", found.group(1) if found else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", said) for name, said in entries}


@functools.cache
def model_of(name: str, *builders: Callable[..., Any]) -> type[BaseModel]:
    """A strict pydantic model of the keyword arguments of `builders` together."""
    options: dict[str, Any] = {}
    for builder in builders:
        hints, said = typing.get_type_hints(builder), documentation(builder)
        if inspect.isclass(builder):
            hints = typing.get_type_hints(builder.__init__) | hints
        made = {f.name: f.default_factory for f in fields(builder)} if is_dataclass(builder) else {}
        for parameter in _options(builder):
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            first = made.get(parameter.name, MISSING)
            options[parameter.name] = (hints[parameter.name], Field(
                **({"default": default} if first is MISSING else {"default_factory": first}),
                description=said.get(parameter.name)))
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **options)


def dataset_kinds() -> list[str]:
    """The known kinds of dataset: files of datasets/ with a ``build``."""
    from datasets import kinds
    return kinds()


HANDED_ON = {"input_size", "spec", "encoder", "told"}
SETTINGS: dict[str, Any] = {"training": Training, "workers": Workers, "quarantine": Quarantine, "tracking": Tracking,
                            "search": Search}


def _options(builder: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments that are a user's options: all but those that one part of a model hands to the next."""
    return [p for p in inspect.signature(builder).parameters.values() if p.name not in HANDED_ON]


def _dataset_builders(kind: str) -> list[Any]:
    from datasets import builders
    return [*builders(kind), Storing]


def _model_builders(family: str, frontend: str | None = None) -> list[Any]:
    """What takes a model's options; without a front end those of all of them."""
    from models import families, frontends
    chosen = [frontend] if frontend else frontends.names()
    return [families.module(family).build, *(frontends.module(name).build for name in chosen)]


def _read(source: str | Path | Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "experiment", _copy(source)
    path = Path(source) if source is not None else DEFAULT
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        near = difflib.get_close_matches(path.stem, known, n=1)
        hint = f"; did you mean {FOLDER.parent.name}/{FOLDER.name}/{near[0]}.yaml?" if near else ""
        raise ValueError(f"{path}: no such experiment file{hint}")
    try:
        told = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path}: an experiment is a mapping of sections, not {type(told).__name__}")
    return str(path), told


def parse(text: str | bytes) -> Any:
    """YAML as plain values.

    Raises:
        ValueError: all that is not; an alias (``*NAME``) that stands for what it is part of, or aliases that together
            stand for more than 10,000 values.
    """
    try:
        return _copy(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _size(node: Any, known: dict[int, tuple[int, int]]) -> int:
    """Values that a node of YAML is once its aliases are copies of what they stand for; a long text counts as several.

    Args:
        known: by the node's identity, what it counts by itself and with all its parts; filled here.
    """
    if id(node) not in known:
        known[id(node)] = 0, 0                         # until its parts are counted
        own = 1 + len(node.value) // 64 if isinstance(node, yaml.ScalarNode) else 1
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = own, min(own + sum(_size(part, known) for part in parts), 1 << 62)
    elif not known[id(node)][0]:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands for what it is part of", node.start_mark)
    return known[id(node)][1]


class _Loader(yaml.SafeLoader):
    """Safe YAML by the rules of 1.2: 1e-3 is a number, 2024-01-31 and NO are texts; a key may stand only once."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        sizes: dict[int, tuple[int, int]] = {}
        if node is not None and _size(node, sizes) - sum(own for own, _ in sizes.values()) > MOST_COPIES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases (*NAME) stand for more than {MOST_COPIES:,} values; leave some out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key in [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != MERGE]:
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a word", node.start_mark)
            if str(key) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that _Loader would read as numbers."""


MERGE = "tag:yaml.org,2002:merge"
_Loader.yaml_implicit_resolvers = {}               # version 1.1 reads 1:30 as 90, 010 as 8 and NO as false
for _tag, _pattern, _first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789")),
        ("float", r"[-+]?(?:(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+|\d[\d_]*\.[\d_]*|\.\d[\d_]*|\.inf)|\.nan",
         list("-+0123456789.")),
        ("merge", "<<", ["<"])):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$", re.ASCII), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$", re.ASCII), _first)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list | tuple) else value


def _override(told: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if parts[0] == "search" and len(parts) > 3 and parts[1] in ("space", "across"):     # what follows is itself a key
        parts[2:] = [".".join(parts[2:])]
    if not equals or not all(parts):
        raise ValueError(f"{text!r} is no override; write section.key=value, such as model.family=lstm")
    try:
        parsed = parse(value)
    except ValueError as error:
        raise ValueError(f"{text!r}: the value is not valid YAML: {error}") from None
    place = told
    for part in parts[:-1]:
        if place.get(part) is None:                    # missing, or written without options: "training:"
            place[part] = {}
        if not isinstance(place[part], dict):
            raise ValueError(f"{text!r}: {part} is not a section")
        place = place[part]
    place[parts[-1]] = parsed


def _drop_for_families(told: dict[str, Any], key: str) -> None:
    """An override of a model's option holds for every family, also where the file has a value for that one."""
    section, _, option = key.partition(".")
    model = told.get("model")
    if section == "model" and isinstance(model, dict) and isinstance(model.get("families"), dict):
        for own in model["families"].values():
            if isinstance(own, dict):
                own.pop(option, None)


def _expand(value: Any, where: str) -> Any:
    """The value with ``${NAME}`` replaced by environment variables, in every text."""
    def variable(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in os.environ and name not in ENVIRONMENT:
            raise ValueError(f"{where}: {found.string!r} names the environment variable {name}, which is not set; "
                             f"export {name}=...")
        return os.environ.get(name, ENVIRONMENT.get(name, ""))

    return _each_text(value, lambda text: re.sub(r"\$\{(\w+)\}", variable, text))


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed; keys stay."""
    if isinstance(value, dict):
        return {k: _each_text(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_each_text(v, change) for v in value]
    return change(value) if isinstance(value, str) else value


def _sections(told: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Each section checked and completed with its defaults; what is wrong is added to `problems`."""
    from models import families, tasks

    known = [f.name for f in fields(Experiment) if f.name not in ("source", "overrides")]
    for key in told.keys() - set(known):
        problems.append(_unknown("", key, told[key], known))
    chosen: dict[str, Any] = {}
    for key in ("name", "storage"):
        value = told.get(key)
        if value is not None and not (isinstance(value, str) and value.strip()):
            problems.append(f"{key}={value!r} must be a text")
        elif value is not None:
            chosen[key] = value
    if without_secrets(chosen.get("storage", "")) != chosen.get("storage", ""):
        problems.append("storage has a user, key or token in it, which all results would repeat; leave it out, and "
                        "give it in the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    name = chosen.setdefault("name", "unnamed")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
        problems.append(f"name={name!r} may hold letters, digits and _ . - (at most 80, the first a letter or digit)")
    kinds: list[tuple[str, str, list[str], Callable[[str], list[Any]]]] = [
        ("dataset", "kind", dataset_kinds(), _dataset_builders),
        ("task", "kind", tasks.names(), lambda n: [tasks.module(n).build]),
        ("model", "family", families.names(), lambda n: _model_builders(n, _frontend(chosen.get("dataset"))))]
    for section, key, names, builders in kinds:
        given = told.get(section)
        if not isinstance(given, dict):
            wrong = " is missing" if given is None else f"={given!r} must be a mapping of options"
            problems.append(f"{section}{wrong}; give it at least {key}, one of {', '.join(names)}")
            continue
        if given.get(key) not in names:
            problems.append(_unknown_choice(f"{section}.{key}", given.get(key), names))
            continue
        options = {k: v for k, v in given.items() if k != key}
        if section == "model":
            options = _for_family(given[key], options, builders, problems)
        checked = _validate(section, model_of(given[key], *builders(given[key])), options, problems)
        chosen[section] = {key: given[key], **checked}
    for section, settings in SETTINGS.items():
        given = {} if told.get(section) is None else told[section]
        if not isinstance(given, dict):
            problems.append(f"{section}={given!r} must be a mapping of options")
            continue
        checked = _validate(section, model_of(section, settings), given, problems)
        if len(checked) or not given:
            try:
                chosen[section] = settings(**checked)
            except ValueError as error:
                problems.append(str(error))
    return chosen


def _for_family(family: str, options: dict[str, Any], builders: Callable[[str], list[Any]],
                problems: list[str]) -> dict[str, Any]:
    """The model's options, with those that `families` has for this family; what is wrong for others is told, too."""
    from models import families

    own = options.pop("families", None) or {}
    if isinstance(own, dict):
        own = {name: {} if told is None else told for name, told in own.items()}
    if not isinstance(own, dict) or not all(isinstance(told, dict) for told in own.values()):
        problems.append(f"model.families={own!r} must be a mapping of families to mappings of their options")
        return options
    for name, told in own.items():
        if name not in families.names():
            problems.append(_unknown("model.families", name, told, families.names()))
        elif name != family:
            _validate(f"model.families.{name}", model_of(name, *builders(name)), told, problems)
    return {**options, **own.get(family, {})}


def _frontend(dataset: dict[str, Any] | None) -> str | None:
    """The front end that reads a dataset's rows; None while the dataset is not known."""
    try:
        return dataset_of(Experiment("", dataset, {}, {})).frontend if dataset and len(dataset) > 1 else None
    except ValueError:                                 # told by _check_combinations
        return None


def _validate(section: str, model: type[BaseModel], given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    try:
        checked = model(**given).model_dump()
        large = [k for k, v in checked.items() if isinstance(v, int) and abs(v) >= 1 << 63]
        problems += [f"{section}.{key}={checked[key]} is too large; use less than 2**63" for key in large]
        return checked
    except ValidationError as error:
        seen = set()
        for one in error.errors():
            place = [str(p) for p in one["loc"]]
            if not place:                              # of a key that is no text
                problems.append(f"{section}: {one['msg']}")
                continue
            key = place[0]
            if key in seen:
                continue
            seen.add(key)
            if one["type"] == "extra_forbidden":
                problems.append(_unknown(section, key, given[key], list(model.model_fields)))
            elif one["type"] == "missing":
                said = model.model_fields[key].description
                problems.append(f"{section}.{key} is missing{f': {said}' if said else ''}")
            else:
                kind = _type_name(model.model_fields[key].annotation)
                problems.append(f"{section}.{key}={given[key]!r} must be {kind}")
        return {}


def _unknown(section: str, key: str, value: Any, known: list[str]) -> str:
    full = f"{section}.{key}" if section else key
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {f'{section}.' if section else ''}{near[0]}? " if near else ""
    return f"{full}={value!r} is not known; {hint}known: {', '.join(sorted(known))}"


def _unknown_choice(key: str, value: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(value).lower(), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{key}={value!r} is not known; {hint}known: {', '.join(known)}"


def _type_name(kind: Any) -> str:
    """A type in words."""
    if kind is Any:
        return "anything"
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is list:
        return f"a list, each {_type_name(args[0])}" if args else "a list"
    if origin is dict:
        return f"a mapping to {_type_name(args[1])}" if args else "a mapping"
    if args:
        return " or ".join(_type_name(a) for a in args)
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false",
            type(None): "null"}.get(kind, str(kind))


def _check_combinations(experiment: Experiment, where: str) -> None:
    """Raise on choices that cannot go together, before anything starts: builds the model without memory."""
    import torch

    import models
    from datasets.records import Records
    from models import tasks

    try:
        storing_of(experiment)
        dataset = dataset_of(experiment)
        reads = tasks.module(experiment.task["kind"]).READS
        if isinstance(dataset, Records) and not dataset.told.offers and not set(dataset.offers) & set(reads):
            raise ValueError("the dataset says nothing of what to predict; name a column in dataset.label (one class a "
                             "row), dataset.labels (several), dataset.step_labels (a class a step), dataset.numbers or "
                             "dataset.target (a text)")
        spec = dataset.spec(None, task_of(experiment, dataset))
        with torch.device("meta"):
            models.build(spec, experiment.model, experiment.task)
        for key, other, wrong in (("batch_seconds", "batch_tokens", "rate" not in spec),
                                  ("batch_tokens", "batch_seconds", "rate" in spec)):
            if wrong and getattr(experiment.training, key) is not None:
                raise ValueError(f"training.{key} has no meaning for dataset.kind={experiment.dataset['kind']}; "
                                 f"use training.{other}")
        windows = "series" in dataset.offers or experiment.task.get("window") is not None
        if windows and experiment.training.batch_tokens is not None:
            raise ValueError("training.batch_tokens has no meaning for windows, which are all equally long; use "
                             "training.batch_size")
        if experiment.training.batch_size < experiment.workers.most:
            raise ValueError(f"training.batch_size={experiment.training.batch_size} is smaller than workers.count="
                             f"{experiment.workers.most}; use at least {experiment.workers.most}, or fewer workers")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    except RuntimeError as error:                  # torch: no tensor can be that large
        raise ValueError(f"{where}: a model of these sizes cannot be built: {error}") from None


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two plain experiments, where it runs (workers, tracking, storage) aside."""
    there, here = dict(flatten(before)), dict(flatten(now))
    free = ("workers.", "tracking.", "storage", "search.")   # where it runs may change, what it computes may not
    return [f"{k}: {there.get(k)!r} there, {here.get(k)!r} here" for k in sorted(there.keys() | here.keys())
            if there.get(k) != here.get(k) and not k.startswith(free)]
