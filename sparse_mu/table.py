"""The results table on a terminal: the blocks of `blocks.py`, laid out for a width."""

import io
from collections.abc import Callable
from itertools import groupby

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sparse_mu.blocks import (
    Block,
    Column,
    Line,
    arm_name,
    block,
    disparity_columns,
    extras,
    metric_columns,
    seconds_columns,
)
from sparse_mu.captions import header, legend

GRADE_COLOURS = {"within": "green", "near": "yellow", "far": "red"}


def render(summary: dict, *, width: int, colour: bool) -> Group:
    """The terminal table, laid out for a width.

    All arms stand side by side where that fits, else one below the other; two decimals where they
    fit, else one.

    Args:
        summary: what `summarise` returned.
        width: columns of the terminal.
        colour: whether gaps are coloured; the marks are there either way.

    Returns:
        A rich renderable.
    """
    parts: list[Text | Table] = [Text(line) for line in header(summary)]
    parts += _fitting(summary, "", metric_columns, width, colour)
    title = "Disparity to each target, percent points [interval]"
    parts += _fitting(summary, title, disparity_columns, width, colour)
    for extra in extras(summary):
        parts += _fitting(summary, extra.title, extra.columns, width, colour, extra.methods)
    title = "Seconds of one unlearning, run alone"
    parts += _fitting(summary, title, seconds_columns, width, colour)
    parts.append(Text())
    parts += [Text(line) for line in legend(summary)]
    parts += [
        Text(f"Warning: {line}", style="yellow" if colour else "") for line in summary["warnings"]
    ]
    return Group(*parts)


def to_text(summary: dict, width: int, colour: bool) -> str:
    """The same as a string: for files, logs and tests."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        highlight=False,
    )
    console.print(render(summary, width=width, colour=colour))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _fitting(
    summary: dict,
    title: str,
    columns: Callable[[list[float]], list[Column]],
    width: int,
    colour: bool,
    methods: list[str] | None = None,
) -> list[Text | Table]:
    """The first layout that fits the width, or the last: side by side, then stacked."""
    sparsities = summary["sparsities"]
    stacked = [[sparsity] for sparsity in sparsities]
    console = Console(width=10_000, file=io.StringIO())
    grids: list[Table] = []
    for arms, decimals in (([sparsities], 2), ([sparsities], 1), (stacked, 2), (stacked, 1)):
        blocks = [block(summary, title, columns(arm), decimals, methods) for arm in arms]
        grids = [_grid(filled, colour) for filled in blocks if filled.lines]
        if all(Measurement.get(console, console.options, g).maximum <= width for g in grids):
            break
    if not grids:
        return []
    heading = [Text(), Text(title, style="bold" if colour else "")] if title else [Text()]
    return [*heading, grids[0], *(part for grid in grids[1:] for part in (Text(), grid))]


def _grid(filled: Block, colour: bool) -> Table:
    """A block as a rich table; columns under one heading share a rich column."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nmethod", no_wrap=True)
    groups = [list(group) for _, group in groupby(range(len(filled.columns)), _heading(filled))]
    for group in groups:
        heading = filled.columns[group[0]].heading
        table.add_column(Text(_centred(filled, group, heading)), no_wrap=True)
    for number, line in enumerate(filled.lines):
        following = filled.lines[min(number + 1, len(filled.lines) - 1)]
        table.add_row(
            Text(line.label),
            *(_joined(filled, group, line, colour) for group in groups),
            end_section=line.reference and not following.reference,
        )
    return table


def _heading(filled: Block) -> Callable[[int], str]:
    return lambda index: filled.columns[index].heading


def _widths(filled: Block, group: list[int]) -> list[int]:
    """The width of each column of a group, wide enough together for its heading."""
    widths = [
        max(
            len(arm_name(filled.columns[index].sparsity)),
            *(len(line.cells[index].text) for line in filled.lines),
        )
        for index in group
    ]
    spaces = 2 * len(group) - 1  # a mark behind each, a space between two
    missing = len(filled.columns[group[0]].heading) - sum(widths) - spaces
    return [widths[0] + max(missing, 0), *widths[1:]]


def _centred(filled: Block, group: list[int], heading: str) -> str:
    arms = "  ".join(
        arm_name(filled.columns[index].sparsity).rjust(width)
        for index, width in zip(group, _widths(filled, group), strict=True)
    )
    return f"{heading.center(len(arms)).rstrip()}\n{arms} "


def _joined(filled: Block, group: list[int], line: Line, colour: bool) -> Text:
    text = Text()
    for index, width in zip(group, _widths(filled, group), strict=True):
        cell = line.cells[index]
        shown = cell.text.rjust(width) + (cell.mark or " ")
        style = GRADE_COLOURS.get(cell.grade or "", "") if colour else ""
        text.append(" " if text else "").append(shown, style=style)
    return text
