"""Datasets: each file here, and in ``synthetic/``, is a kind of dataset: how to read, check, fit and encode raw data.

``reading/`` turns files into tables, ``shared/`` has what several kinds use (``contract.py`` says what a kind must do),
``pipeline/`` prepares encoded rows and reads them for training. See CONTRIBUTING.md for how to add a kind.

This folder shares its name with a package of Hugging Face, which Rondo does not use. Code that imports names of that
package from here gets an ImportError that explains this.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from datasets import synthetic

if TYPE_CHECKING:
    from datasets.shared.contract import RawDataset

HUGGING_FACE = {
    "load_dataset",
    "load_from_disk",
    "Dataset",
    "DatasetDict",
    "IterableDataset",
    "Features",
    "Value",
    "ClassLabel",
    "Audio",
    "concatenate_datasets",
    "load_dataset_builder",
    "get_dataset_split_names",
}


def kinds() -> list[str]:
    """Names of the kinds of dataset, sorted: the files of this folder and of ``synthetic/``."""
    return sorted(_packages())


def module(kind: str) -> ModuleType:
    """The module of a kind of dataset.

    Raises:
        ValueError: the kind is not known; the message lists the known kinds and the most similar one.
    """
    known = _packages()
    if kind not in known:
        near = difflib.get_close_matches(kind.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"dataset.kind={kind!r} is not known; {hint}known kinds: {', '.join(sorted(known))}")
    return importlib.import_module(f"{known[kind]}.{kind}")


def _packages() -> dict[str, str]:
    """Name of the package of each kind."""
    return {
        found.name: package.__name__
        for package in (sys.modules[__name__], synthetic)
        for found in pkgutil.iter_modules(package.__path__)
        if not found.ispkg
    }


def builders(kind: str) -> list[type | Callable[..., Any]]:
    """The callables that take a kind's options: its ``build``, and ``RecordOptions`` if that takes ``common``."""
    build = module(kind).build
    if "common" not in inspect.signature(build).parameters:
        return [build]
    from datasets.shared.options import RecordOptions

    return [build, RecordOptions]


def build(kind: str, **options: Any) -> RawDataset:
    """Build a dataset of a kind from the options of its ``builders``; no file is read.

    Raises:
        ValueError: an unknown kind, or options that are out of range or contradict each other.
    """
    build_kind, *shared = builders(kind)
    if shared:
        names = inspect.signature(shared[0]).parameters
        common = shared[0](**{k: v for k, v in options.items() if k in names})
        return cast("RawDataset", build_kind(common, **{k: v for k, v in options.items() if k not in names}))
    return cast("RawDataset", build_kind(**options))


def __getattr__(name: str) -> NoReturn:
    if name in HUGGING_FACE:
        raise ImportError(
            f"datasets.{name} belongs to Hugging Face's package, but here `datasets` is Rondo's own "
            "folder, which comes first on the path; run that code in another folder, or read hub data by "
            "an hf:// URI, which needs no such package"
        )
    raise AttributeError(f"module 'datasets' has no attribute {name!r}")
