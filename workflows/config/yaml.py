"""YAML of experiments: strict, by the rules of YAML 1.2, with overrides and environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

ENVIRONMENT = {"RONDO_DATA": "data"}  # defaults of variables that a path may name
MAX_COPIES = 10_000  # values that aliases may add to a file; a few lines can expand to billions


def parse(text: str | bytes) -> Any:
    """YAML as plain values.

    Raises:
        ValueError: all that is not; an alias (``*NAME``) inside of the value that it refers to, or aliases that
            together expand to more than 10,000 values.
    """
    try:
        return plain_copy(yaml.load(text, Loader=Loader))
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _size(node: yaml.Node, known: dict[int, tuple[int, int]]) -> int:
    """Number of values in a node of YAML after its aliases are expanded; a long text counts as several.

    Args:
        known: by the node's identity, what it counts by itself and with all its parts; filled here.
    """
    if id(node) not in known:
        known[id(node)] = 0, 0  # until its parts are counted
        own = 1 + len(node.value) // 64 if isinstance(node, yaml.ScalarNode) else 1
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = own, min(own + sum(_size(part, known) for part in parts), 1 << 62)
    elif not known[id(node)][0]:
        raise yaml.constructor.ConstructorError(
            None, None, "an alias is inside of the value that it refers to", node.start_mark
        )
    return known[id(node)][1]


class Loader(yaml.SafeLoader):
    """Safe YAML by the rules of 1.2: 1e-3 is a number, 2024-01-31 and NO are texts; a key may stand only once."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        sizes: dict[int, tuple[int, int]] = {}
        if node is not None and _size(node, sizes) - sum(own for own, _ in sizes.values()) > MAX_COPIES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases (*NAME) expand to more than {MAX_COPIES:,} values; leave some out"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key in [self.construct_object(k, deep=True) for k, _ in node.value if k.tag != MERGE]:
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a word", node.start_mark)
            if str(key) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is duplicated", node.start_mark)
            seen.add(str(key))
        return super().construct_mapping(node, deep=True)


class Dumper(yaml.SafeDumper):
    """Quotes the texts that _Loader would read as numbers."""


MERGE = "tag:yaml.org,2002:merge"
Loader.yaml_implicit_resolvers = {}  # version 1.1 reads 1:30 as 90, 010 as 8 and NO as false
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+|\d[\d_]*\.[\d_]*|\.\d[\d_]*|\.inf)|\.nan",
        list("-+0123456789."),
    ),
    ("merge", "<<", ["<"]),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$", re.ASCII), _first)
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$", re.ASCII), _first)


def plain_copy(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(k): plain_copy(v) for k, v in value.items()}
    return [plain_copy(v) for v in value] if isinstance(value, list | tuple) else value


def apply_override(options: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if parts[0] == "search" and len(parts) > 3 and parts[1] in ("space", "across"):  # what follows is itself a key
        parts[2:] = [".".join(parts[2:])]
    if not equals or not all(parts):
        raise ValueError(f"{text!r} is no override; write section.key=value, such as model.family=lstm")
    try:
        parsed = parse(value)
    except ValueError as error:
        raise ValueError(f"{text!r}: the value is not valid YAML: {error}") from None
    section = options
    for part in parts[:-1]:
        if section.get(part) is None:  # missing, or written without options: "training:"
            section[part] = {}
        if not isinstance(section[part], dict):
            raise ValueError(f"{text!r}: {part} is not a section")
        section = section[part]
    section[parts[-1]] = parsed


def expand_variables(value: Any, where: str) -> Any:
    """The value with ``${NAME}`` replaced by environment variables, in every text."""

    def variable(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in os.environ and name not in ENVIRONMENT:
            raise ValueError(
                f"{where}: {found.string!r} names the environment variable {name}, which is not set; export {name}=..."
            )
        return os.environ.get(name, ENVIRONMENT.get(name, ""))

    return map_texts(value, lambda text: re.sub(r"\$\{(\w+)\}", variable, text))


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed; keys stay."""
    if isinstance(value, dict):
        return {k: map_texts(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [map_texts(v, change) for v in value]
    return change(value) if isinstance(value, str) else value
