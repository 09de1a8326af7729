"""Checks each section of an experiment, and names every mistake in it."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from datasets.pipeline.storage import without_secrets
from models import families, tasks
from workflows.config.experiment import Experiment
from workflows.config.schema import SETTINGS, dataset_builders, dataset_kinds, model_builders, model_of


def check_sections(sections: dict[str, Any], problems: list[str], conflicts: list[str]) -> dict[str, Any]:
    """Each section checked and completed with its defaults.

    Args:
        sections: as read.
        problems: what is wrong whatever the other options are is added here: unknown options, values of another type.
        conflicts: what is wrong with the values of a section's settings is added here.
    """
    known = [f.name for f in fields(Experiment) if f.name not in ("source", "overrides")]
    for key in sections.keys() - set(known):
        problems.append(_unknown("", key, sections[key], known))
    chosen: dict[str, Any] = {}
    for key in ("name", "storage"):
        value = sections.get(key)
        if value is not None and not (isinstance(value, str) and value.strip()):
            problems.append(f"{key}={value!r} must be a text")
        elif value is not None:
            chosen[key] = value
    if without_secrets(chosen.get("storage", "")) != chosen.get("storage", ""):
        problems.append(
            "storage has a user, key or token in it, which all results would repeat; leave it out, and "
            "give it in the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    name = chosen.setdefault("name", "unnamed")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
        problems.append(f"name={name!r} may hold letters, digits and _ . - (at most 80, the first a letter or digit)")
    kinds: list[tuple[str, str, list[str], Callable[[str], list[Any]]]] = [
        ("dataset", "kind", dataset_kinds(), dataset_builders),
        ("task", "kind", tasks.names(), lambda n: [tasks.module(n).build]),
        ("model", "family", families.names(), lambda n: model_builders(n, _frontend(chosen.get("dataset")))),
    ]
    for section, key, names, builders in kinds:
        given = sections.get(section)
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
        given = {} if sections.get(section) is None else sections[section]
        if not isinstance(given, dict):
            problems.append(f"{section}={given!r} must be a mapping of options")
            continue
        checked = _validate(section, model_of(section, settings), given, problems)
        if len(checked) or not given:
            try:
                chosen[section] = settings(**checked)
            except ValueError as error:
                conflicts.append(str(error))
    return chosen


def _for_family(
    family: str, options: dict[str, Any], builders: Callable[[str], list[Any]], problems: list[str]
) -> dict[str, Any]:
    """The model's options, with those that `families` has for this family; mistakes in the others are reported, too."""

    families_options = options.pop("families", None) or {}
    if isinstance(families_options, dict):
        families_options = {name: {} if given is None else given for name, given in families_options.items()}
    if not isinstance(families_options, dict) or not all(
        isinstance(given, dict) for given in families_options.values()
    ):
        problems.append(
            f"model.families={families_options!r} must be a mapping of families to mappings of their options"
        )
        return options
    for name, given in families_options.items():
        if name not in families.names():
            problems.append(_unknown("model.families", name, given, families.names()))
        elif name != family:
            _validate(f"model.families.{name}", model_of(name, *builders(name)), given, problems)
    return {**options, **families_options.get(family, {})}


def model_options(family: str, dataset: dict[str, Any] | None) -> set[str]:
    """Names of the options that a family's model has for a dataset."""
    return set(model_of(family, *model_builders(family, _frontend(dataset))).model_fields)


def _frontend(dataset: dict[str, Any] | None) -> str | None:
    """The front end that reads a dataset's rows; None while the dataset is not known."""
    try:
        return Experiment("", dataset, {}, {}).raw_dataset.frontend if dataset and len(dataset) > 1 else None
    except ValueError:  # reported by _check_combinations
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
            path = [str(p) for p in one["loc"]]
            if not path:  # a key that is not text
                problems.append(f"{section}: {one['msg']}")
                continue
            key = path[0]
            if key in seen:
                continue
            seen.add(key)
            if one["type"] == "extra_forbidden":
                problems.append(_unknown(section, key, given[key], list(model.model_fields)))
            elif one["type"] == "missing":
                description = model.model_fields[key].description
                problems.append(f"{section}.{key} is missing{f': {description}' if description else ''}")
            else:
                kind = _type_name(model.model_fields[key].annotation)
                problems.append(f"{section}.{key}={given[key]!r} must be {kind}")
        return {}


def _unknown(section: str, key: str, value: object, known: list[str]) -> str:
    full = f"{section}.{key}" if section else key
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {f'{section}.' if section else ''}{near[0]}? " if near else ""
    return f"{full}={value!r} is not known; {hint}known: {', '.join(sorted(known))}"


def _unknown_choice(key: str, value: object, known: list[str]) -> str:
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
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}.get(
        kind, str(kind)
    )
