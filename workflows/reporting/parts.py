"""The parts of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from workflows.reporting.marks import Chart

Summary = dict[str, Any]  # the JSON that a run left in its folder, and each mapping in it


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: that it shows.
        sort: the number by which its column is sorted; None: the text.
        title: text that is shown when the pointer rests on it.
        style: class of the style sheet.
    """

    text: str
    sort: float | None = None
    title: str = ""
    style: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Table:
    """A table with headings.

    Attributes:
        name: for readers who cannot see it.
        columns: their headings.
        rows: of cells, one for each column.
        highlighted: indices of the rows to emphasise.
        scrolls: whether its height is limited.
    """

    kind: ClassVar[str] = "table"
    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    highlighted: frozenset[int] = frozenset()
    scrolls: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which are aligned to the right."""
        if not self.rows:
            return [False] * len(self.columns)
        return [any(c.sort is not None for c in column) for column in zip(*self.rows, strict=True)]


@dataclass(frozen=True)
class Charts:
    """Charts, next to each other if there is space."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Pictures:
    """PNG files: (data URI, description, width in pixels)."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[tuple[str, str, int]]


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Collapsible:
    """Parts that are hidden until the reader opens them."""

    kind: ClassVar[str] = "collapsible"
    title: str
    parts: Sequence[Part]


Part: TypeAlias = Paragraph | Table | Charts | Pictures | Code | Collapsible


@dataclass(frozen=True)
class Section:
    """One section of the page; one without parts is left out."""

    id: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """All that the template shows.

    Attributes:
        name: of the experiment.
        run: name of the run.
        kind: training, search or comparison.
        verdict: the result in a sentence or two.
        facts: (name, value, remark) of the most important figures.
        sections: in order.
    """

    name: str
    run: str
    kind: str
    verdict: str
    facts: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)
