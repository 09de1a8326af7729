"""What an experiment's sections may hold, read from the builders and settings that take their options."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from datasets import builders, kinds
from models import families, frontends, tasks
from workflows.config.settings import Quarantine, Search, Storing, Tracking, Training, Workers


def schema() -> dict[str, Any]:
    """The JSON schema of an experiment file, for editors."""

    def choice(key: str, names: list[str], of: Callable[[str], list[Any]]) -> dict[str, Any]:
        variants = []
        for name in names:
            one = model_of(name, *of(name)).model_json_schema()
            one["properties"] = {key: {"const": name}, **one.get("properties", {})}
            if key == "family":
                one["properties"]["families"] = {
                    "type": "object",
                    "description": "Options that hold for one family only.",
                    "properties": {family: {"type": "object"} for family in names},
                    "additionalProperties": False,
                }
            one["required"] = [key, *one.get("required", [])]
            variants.append(one)
        return {"oneOf": variants}

    sections = {
        "name": {"type": "string"},
        "dataset": choice("kind", dataset_kinds(), dataset_builders),
        "task": choice("kind", tasks.names(), lambda n: [tasks.module(n).build]),
        "model": choice("family", families.names(), model_builders),
        "storage": {"type": "string", "description": "Folder or URI that runs and prepared data go to."},
    }
    for key, settings in SETTINGS.items():
        sections[key] = model_of(key, settings).model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rondo experiment",
        "type": "object",
        "properties": sections,
        "required": ["name", "dataset", "task", "model"],
        "additionalProperties": False,
    }


def documentation(builder: Callable[..., Any]) -> dict[str, str]:
    """What a docstring's ``Args:`` (or ``Attributes:``) says of each argument."""
    text = inspect.getdoc(builder) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


@functools.cache
def model_of(name: str, *builders: Callable[..., Any]) -> type[BaseModel]:
    """A strict pydantic model of the keyword arguments of `builders` together."""
    options: dict[str, Any] = {}
    for builder in builders:
        hints, descriptions = typing.get_type_hints(builder), documentation(builder)
        if inspect.isclass(builder):
            hints = typing.get_type_hints(builder.__init__) | hints
        factories = {f.name: f.default_factory for f in fields(builder)} if is_dataclass(builder) else {}
        for parameter in options_of(builder):
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            factory = factories.get(parameter.name, MISSING)
            options[parameter.name] = (
                hints[parameter.name],
                Field(
                    **({"default": default} if factory is MISSING else {"default_factory": factory}),
                    description=descriptions.get(parameter.name),
                ),
            )
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **options)


def dataset_kinds() -> list[str]:
    """The known kinds of dataset: files of datasets/ with a ``build``."""

    return kinds()


INTERNAL_ARGUMENTS = {"input_size", "spec", "encoder", "common"}
SETTINGS: dict[str, Any] = {
    "training": Training,
    "workers": Workers,
    "quarantine": Quarantine,
    "tracking": Tracking,
    "search": Search,
}


def options_of(builder: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments that are a user's options: all but those that one part of a model passes to the next."""
    return [p for p in inspect.signature(builder).parameters.values() if p.name not in INTERNAL_ARGUMENTS]


def dataset_builders(kind: str) -> list[Any]:

    return [*builders(kind), Storing]


def model_builders(family: str, frontend: str | None = None) -> list[Any]:
    """What takes a model's options; without a front end those of all of them."""

    chosen = [frontend] if frontend else frontends.names()
    return [families.module(family).build, *(frontends.module(name).build for name in chosen)]
