"""The contract between a kind of dataset and the rest of Rondo.

A kind of dataset is a module in ``datasets/`` or ``datasets/synthetic/``. Its function ``build`` takes the options of
the kind as annotated keyword arguments, checks them, and returns an object with the attributes and methods of
`RawDataset`. The type annotations become the schema of experiment files; the ``Args`` section of the docstring
describes the options to users.

Most kinds are tables whose rows are examples: these derive from `datasets.shared.records.Records`, which implements the
contract and leaves only the input to the kind. Series derive from `datasets.shared.series_dataset.SeriesDataset`.

The methods are called in this order:

1. ``available_targets`` and ``spec`` (with no state), when an experiment is checked; no file is read.
2. ``sources`` and ``options``, whose hash is the name of the prepared data.
3. ``encode`` and then ``state``, once, if no data of that name exists; see ``datasets/pipeline/prepare.py``.
4. ``spec`` and ``view``, for each training, evaluation and prediction.

Objects are pickled into the tasks of Ray Data, so they hold options and fitted state only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import ray.data

    from datasets.pipeline.prepared import Prepared
    from datasets.pipeline.views import View
    from datasets.reading.find import SourceFile


class RawDataset(Protocol):
    """What the ``build`` of a kind of dataset returns.

    Attributes:
        kind: the name of the kind, which is the name of its file.
        frontend: the file of ``models/frontends/`` that turns its inputs into steps of features.
    """

    kind: ClassVar[str]
    frontend: ClassVar[str]

    @property
    def available_targets(self) -> tuple[str, ...]:
        """The targets that a task can learn, the preferred one first.

        Each is one of the names in ``TARGETS`` of a file of ``models/tasks/``: ``series``, ``label``, ``labels``,
        ``step_labels``, ``numbers``, ``target``, ``tokens``, ``notes``.
        """

    def sources(self) -> list[SourceFile]:
        """The raw files; their addresses, sizes and times are part of the prepared data's key.

        Raises:
            ValueError: a path of the options matches no file.
        """

    def options(self) -> dict[str, Any]:
        """Everything else that decides the content of the prepared data, as plain values for JSON.

        These values are part of the key too: after a change, all data of this kind is prepared again.
        """

    def encode(self) -> dict[str, ray.data.Dataset]:
        """Read, check, fit and encode the raw data.

        Returns:
            By part, the stored rows as a lazy dataset, in the order in which they are to be stored. A part is a split,
            or ``series`` where the splits are ranges of the same series. The columns are:

            - ``length``, integer: steps of the row.
            - the columns that ``view`` reads. Integer columns are also in the index of the part.
            - ``summary``, string: JSON for ``state``, or "". It is not stored.
            - ``quarantine``, string, optional: JSON with the uri, row, field and reason of a record that cannot be
              used, whose other columns are null; "" or null in all other rows. It is not stored.

        Raises:
            ValueError: the data cannot be used, for a reason that is not limited to single records. Tasks of the lazy
                datasets raise the same inside `datasets.reading.errors.user_errors`.
        """

    def state(self, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The fitted state, as plain values for JSON, from the summaries that are not empty; called after ``encode``.

        It comes from the training split only. ``notes``, a list of texts, is shown to the user. ``best``, the metrics
        that no model can exceed, is shown next to the results.
        """

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        """The facts about a row from which the front end and the task are built.

        Args:
            state: the fitted state; None before the data is prepared, when the options must be enough.
            task: the task's ``kind`` and options, and ``target``: which of `available_targets` it learns.

        Returns:
            ``frontend``, the arguments of that front end, and what the task needs to know of the target.
        """

    def names(self, state: Mapping[str, Any], target: str) -> list[str]:
        """What the numbers of a target stand for, in their order: classes, columns or notes; nothing for tokens."""

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        """The training rows of a split: ``train``, ``validation`` or ``test``.

        Raises:
            ValueError: the data has no such split, or no row in it for the options of the task.
        """
