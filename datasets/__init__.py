"""Datasets: raw records of one modality a file, and how to read, check, fit and encode them.

This folder shares its name with a package of Hugging Face. Rondo needs none of it; code that asks here for that
package's names is told so.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, cast

if TYPE_CHECKING:
    import ray.data

    from datasets.files import Source
    from datasets.prepare import Prepared
    from datasets.views import View

HUGGING_FACE = {"load_dataset", "load_from_disk", "Dataset", "DatasetDict", "IterableDataset", "Features", "Value",
                "ClassLabel", "Audio", "concatenate_datasets", "load_dataset_builder", "get_dataset_split_names"}


class RawDataset(Protocol):
    """What a dataset file's ``build`` returns."""

    kind: ClassVar[str]
    frontend: ClassVar[str]               # of models/frontends/, that reads its rows

    @property
    def offers(self) -> tuple[str, ...]:
        """What can be predicted: of ``series``, ``label``, ``labels``, ``step_labels``, ``numbers`` (models/tasks)."""

    def sources(self) -> list[Source]:
        """The raw files; their fingerprints are part of the prepared data's key."""

    def options(self) -> dict[str, Any]:
        """What else decides the prepared data, as plain values."""

    def encode(self) -> dict[str, ray.data.Dataset]:
        """Stored rows by part (a split, or ``series``), with an integer ``length`` and a text ``summary`` each."""

    def state(self, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The fitted state, as plain values, from the summaries that are not empty."""

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        """What a model must know of a row; before preparation (no state) as far as the options tell.

        `task` has the task's ``kind`` and options, and ``target``: which of `offers` it reads.
        """

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        """The rows of a split."""


def kinds() -> list[str]:
    """The known kinds of dataset: the files of this folder that have a ``build``, sorted."""
    here = Path(__file__).parent
    return sorted(p.stem for p in here.glob("*.py") if p.stem != "__init__" and
                  re.search(r"^def build\(", p.read_text(encoding="utf-8"), re.MULTILINE))


def module(kind: str) -> ModuleType:
    """The file of a kind of dataset.

    Raises:
        ValueError: no such file; the message lists the known kinds and the nearest one.
    """
    known = kinds()
    if kind not in known:
        near = difflib.get_close_matches(kind.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"dataset.kind={kind!r} is not known; {hint}known kinds: {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{kind}")


def builders(kind: str) -> list[type | Callable[..., Any]]:
    """What takes a dataset's options: the file's ``build``, and ``records.Options`` if that asks for them (told)."""
    build = module(kind).build
    if "told" not in inspect.signature(build).parameters:
        return [build]
    from datasets.records import Options
    return [build, Options]


def build(kind: str, **options: Any) -> RawDataset:
    """Make a dataset; `options` are those of its ``builders``."""
    make, *shared = builders(kind)
    if shared:
        names = inspect.signature(shared[0]).parameters
        told = shared[0](**{k: v for k, v in options.items() if k in names})
        return cast(RawDataset, make(told, **{k: v for k, v in options.items() if k not in names}))
    return cast(RawDataset, make(**options))


def __getattr__(name: str) -> NoReturn:
    if name in HUGGING_FACE:
        raise ImportError(f"datasets.{name} belongs to Hugging Face's package, but here `datasets` is Rondo's own "
                          "folder, which comes first on the path; run that code in another folder, or read hub data by "
                          "an hf:// URI, which needs no such package")
    raise AttributeError(f"module 'datasets' has no attribute {name!r}")
