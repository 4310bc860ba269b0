"""The rows as a table: on a terminal, and in a Markdown file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from areal_mega.bench.case import Skip
from areal_mega.bench.rows import Row, by_case
from areal_mega.config.errors import UserError

_STYLES = {"ours": "green", "peer": "", "partial": "dim"}


def terminal_table(rows: Sequence[Row]) -> RenderableType:
    """All rows, case by case: ours first, then what they are compared with."""
    parts: list[RenderableType] = []
    for case in by_case(rows):
        first = case[0]
        parts.append(Text(f"\n{first.op} {_direction(first)}, {first.dtype}, {first.shape}", style="bold"))
        table = Table(box=None, header_style="dim", padding=(0, 1))
        table.add_column("  on " + first.device, width=_NAME_WIDTH, overflow="fold")
        for title in _NUMBERS:
            table.add_column(title, justify="right", min_width=_NUMBER_WIDTH, no_wrap=True)
        for row in case:
            table.add_row(f"  {row.backend}", *_numbers(row), style=_STYLES[row.role])
        parts.append(table)
    return Group(*parts)


def skipped_lines(skipped: Sequence[tuple[str, Skip]]) -> list[str]:
    """Who did not take part, one line for each reason. skipped: with the operation."""
    where: dict[Skip, list[str]] = defaultdict(list)
    for op, skip in skipped:
        if op not in where[skip]:
            where[skip].append(op)
    return [f"{skip.name} {skip.reason}: {', '.join(ops)}" for skip, ops in where.items()]


def write_markdown(path: Path, rows: Sequence[Row]) -> None:
    """Put our rows, and what they are compared with, between the markers of their device in a Markdown file.

    Raises UserError for a file without the markers.
    """
    name = rows[0].device
    begin, end = f"<!-- bench {name} -->", f"<!-- /bench {name} -->"
    text = path.read_text() if path.exists() else ""
    if begin not in text or end not in text:
        raise UserError(f"--markdown {path}: expected a file with the lines {begin} and {end}, between which it goes")
    table = f"{begin}\n{_markdown(rows)}\n{end}"
    path.write_text(re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: table, text, flags=re.DOTALL))


def _markdown(rows: Sequence[Row]) -> str:
    titles = ["operation", "backend", *_NUMBERS[:3], "best peer", *_NUMBERS[3:]]
    lines = [
        f"Measured on: {rows[0].machine}.",
        "",
        _line(titles),
        _line(["---", "---", *["---:"] * (len(titles) - 2)]),
    ]
    for case in by_case(rows):
        first = case[0]
        what = f"`{first.op}` {_direction(first)}, {first.dtype}, {first.shape}"
        for row in case:
            if row.role == "ours" or row.backend == _TWO_STEPS:
                time, ratio, of_limit, *rest = _numbers(row)
                peer = "-" if row.best_peer is None else f"{row.best_peer}, {_milliseconds(row.best_peer_ms)}"
                lines.append(_line([what, row.backend, time, ratio, of_limit, peer, *rest]))
                what = ""
    return "\n".join(lines)


def _direction(row: Row) -> str:
    return row.direction.replace("_", "+")


_TWO_STEPS = "linear_logprob, then policy_loss"
_NUMBERS = ("ms", "ratio", "of limit", "GB/s", "TFLOP/s", "extra MiB", "outputs MiB", "error")
_NAME_WIDTH, _NUMBER_WIDTH = 38, 6
# All columns with their padding; narrower they would fold.
WIDTH = 125


def _numbers(row: Row) -> list[str]:
    """In the order of `_NUMBERS`."""
    return [
        _milliseconds(row.median_ms),
        "-" if row.ratio is None else f"{_short(row.ratio)}x",
        "-" if row.fraction_of_limit is None else f"{100 * row.fraction_of_limit:.2g}% {row.limit}",
        "-" if row.gb_per_s is None else _short(row.gb_per_s),
        "-" if row.tflop_per_s is None else _short(row.tflop_per_s),
        "-" if row.peak_extra_mb is None else f"{row.peak_extra_mb:.1f}",
        f"{row.outputs_mb:.1f}",
        f"{row.error:.1e}",
    ]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else _short(value)


def _short(value: float) -> str:
    """Three digits, but never in powers of ten."""
    return f"{value:.3g}" if 1e-4 <= value < 100 else f"{value:.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
