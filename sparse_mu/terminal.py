"""What the user sees while a run goes on and when it ends."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sparse_mu import table, verify
from sparse_mu.reading import reading


class ProgressBar:
    """One bar that names the act, the method and the remaining time; silent without a terminal."""

    def __init__(self) -> None:
        """The bar stands on standard error, so that standard output holds the table alone."""
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.fields[act]:<8}"),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        """Shows the bar."""
        self._task = self._bar.add_task("", total=None, act="data")
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def update(self, act: str, what: str, done: float, total: float) -> None:
        """Moves the bar: ``done`` of ``total`` units."""
        self._bar.update(self._task, act=act, description=what, completed=done, total=total)


def show(summary: dict, report: Path) -> None:
    """Prints the table of a run on standard output, in colour where the terminal has colour.

    Args:
        summary: of the run.
        report: where its report is; said on standard error, so that the table stands alone.
    """
    console = Console(file=sys.stdout)
    width = console.width if console.is_terminal else 120
    console = Console(file=sys.stdout, width=width)
    console.print(reading(summary), end="\n\n")
    console.print(table.render(summary, width=width, colour=console.color_system is not None))
    sys.stdout.flush()
    print(f"\nreport: {report}", file=sys.stderr)


def show_lines(lines: list[verify.Line]) -> int:
    """Prints what was verified and the conclusion; returns the exit code, 1 where a line fails."""
    for line in lines:
        why = f": {line.why}" if line.why else ""
        print(f"{line.status:<{len(verify.NOT_CHECKED)}}  {_plain(line.what + why)}")
    print(_plain(verify.conclusion(lines)), flush=True)
    return int(any(line.status == verify.FAILS for line in lines))


def _plain(text: str) -> str:
    """One line of a terminal, whatever names of a damaged file stand in it."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
