"""Tables that fit the console: columns leave, names and long lists are cut in the middle.

Whatever is not shown is said below the table, with the place that has all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

MOST_ROWS = 40
"""A longer list is cut in the middle."""
_LEAST = {"name": 5, "text": 12}
_COMFORTABLE = {"name": 14, "text": 20}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: may have several lines.
        cells: one a row.
        kind: a "figure" stands at the right; like a "word" it is never cut. A "name" is cut in
            the middle, a "text" is broken into lines.
        rank: 0 stays at any width; of the others the largest leaves first.
    """

    heading: str
    cells: Sequence[str]
    kind: Literal["figure", "word", "name", "text"] = "figure"
    rank: int = 0

    @property
    def width(self) -> int:
        """Columns of the console that it takes as it is."""
        lines = [*self.heading.split("\n"), *self.cells]
        return max(map(len, lines))

    @property
    def least(self) -> int:
        """Columns of the console that it needs at least."""
        return min(self.width, _LEAST.get(self.kind, self.width))

    @property
    def comfortable(self) -> int:
        """Columns of the console for which others leave."""
        return min(self.width, _COMFORTABLE.get(self.kind, self.width))

    @property
    def label(self) -> str:
        """The heading on one line."""
        return self.heading.replace("-\n", "").replace("\n", " ")


@dataclass(frozen=True)
class Fitted:
    """A table that is laid out for the console that it is printed on.

    Attributes:
        columns: all of equally many cells.
        title: above it.
        caption: below it.
        rows: what the rows are, e.g. "clients".
        all_in: what holds the columns and rows that do not fit, e.g. "--json".
    """

    columns: Sequence[Column]
    title: str = ""
    caption: str = ""
    rows: str = "rows"
    all_in: str = "--json"

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Lay it out; what rich calls."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        mark = "~" if options.ascii_only else "…"
        shown = _fitting(self.columns, options.max_width)
        widths = _widths(shown, options.max_width)
        picked = _ends(len(self.columns[0].cells))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column, width in zip(shown, widths, strict=True):
            table.add_column(
                Text(column.heading),
                justify="right" if column.kind == "figure" else "left",
                no_wrap=column.kind != "text",
                min_width=width,
                max_width=width,
            )
        for row in picked:
            cells = [mark if row is None else column.cells[row] for column in shown]
            cut = [
                cell if column.kind == "text" else middle_cut(cell, width, mark)
                for cell, column, width in zip(cells, shown, widths, strict=True)
            ]
            table.add_row(*map(Text, cut))
        if self.title:
            yield Text(self.title, style="bold")
        yield table
        if self.caption:
            yield Text(self.caption)
        yield from map(Text, self._left_out(shown, len(picked) - 1, options.max_width))

    def _left_out(self, shown: Sequence[Column], rows: int, width: int) -> Iterator[str]:
        count = len(self.columns[0].cells)
        if count > MOST_ROWS:
            yield f"{count - rows} of {count} {self.rows} not shown ({self.all_in} has all)"
        if missing := [column.label for column in self.columns if column not in shown]:
            yield f"not shown in {width} columns: {', '.join(missing)} ({self.all_in} has all)"


def middle_cut(text: str, width: int, mark: str = "…") -> str:
    """Return the text, cut in the middle where it is longer than `width`: "raspb…-5-12"."""
    if len(text) <= width:
        return text
    left = (width - len(mark)) // 2
    right = max(0, width - len(mark) - left)
    return text[:left] + mark + (text[-right:] if right else "")


def _total(widths: Sequence[int]) -> int:
    # An edge at each side, a space after each cell, and one between neighbours.
    return 1 + sum(width + 2 for width in widths)


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    shown = list(columns)
    while _total([column.comfortable for column in shown]) > width:
        last = max(shown, key=lambda column: column.rank)
        if last.rank == 0:
            break
        shown.remove(last)
    return shown


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """Return each column's width: what is left over goes to names first, then to texts."""
    widths = [column.least for column in columns]
    for kind in ("name", "text"):
        ours = [k for k, column in enumerate(columns) if column.kind == kind]
        # The narrowest first: what it does not need is for the others.
        ours.sort(key=lambda k: columns[k].width)
        for position, k in enumerate(ours):
            spare = max(0, width - _total(widths)) // (len(ours) - position)
            widths[k] += min(spare, columns[k].width - widths[k])
    return widths


def _ends(count: int) -> list[int | None]:
    """Return the rows to show; None is where the middle was cut out."""
    if count <= MOST_ROWS:
        return list(range(count))
    half = MOST_ROWS // 2
    return [*range(half), None, *range(count - half, count)]
