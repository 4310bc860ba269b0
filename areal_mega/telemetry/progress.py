"""Live display of a run: a panel on a terminal, lines (not more than one in two seconds) elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A metric on the display: its name there, its key in the metrics, its format."""

    title: str
    key: str
    format: str = "{:.3f}"

    def show(self, metrics: dict[str, float]) -> str:
        return self.format.format(metrics[self.key]) if self.key in metrics else "-"


class ProgressDisplay:
    """Shows the last steps' metrics and the time each phase took.

    enabled: False shows nothing at all (other ranks).
    """

    RECENT = 12
    SECONDS_BETWEEN_LINES = 2.0

    def __init__(self, title: str, steps: int, columns: list[Column], enabled: bool, live: bool) -> None:
        self.columns, self.steps, self.title = columns, steps, title
        self.console = Console(quiet=not enabled)
        self._rows: list[list[str]] = []
        self._phases: dict[str, float] = {}
        self._last_line = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            expand=True,
        )
        self._task = self._bar.add_task(title, total=steps)
        self._live: Live | None = None
        if enabled and live and self.console.is_terminal:
            self._live = Live(self._panel(), console=self.console, refresh_per_second=4)

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line above the panel, as it is: brackets in a model's answer are no markup."""
        self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Show a finished step."""
        row = [str(step), *(c.show(metrics) for c in self.columns)]
        self._rows = [*self._rows, row][-self.RECENT :]
        self._phases = {k[5:]: v for k, v in metrics.items() if k.startswith("time/")}
        self._bar.update(self._task, completed=step)
        if self._live:
            self._live.update(self._panel())
        elif step == self.steps or time.monotonic() - self._last_line > self.SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            shown = "  ".join(f"{c.title} {v}" for c, v in zip(self.columns, row[1:], strict=True))
            self.say(f"step {step}/{self.steps}  {shown}  ({self._times()})")

    def _times(self) -> str:
        return "  ".join(f"{k} {v:.1f}s" for k, v in self._phases.items())

    def _panel(self) -> Panel:
        table = Table(expand=True, box=None, header_style="bold")
        for title in ["step", *(c.title for c in self.columns)]:
            table.add_column(title, justify="right")
        for row in self._rows:
            table.add_row(*row)
        return Panel(Group(self._bar, table, f"[dim]{self._times()}[/dim]"), title=self.title)
