"""The rows as one picture: how long everyone takes, in times of our fastest backend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from areal_mega.bench.rows import Row, by_case

_COLOURS = {"ours": "tab:green", "peer": "tab:blue", "partial": "tab:gray"}


def plot(path: Path, rows: Sequence[Row]) -> None:
    """One line for each case, one dot for each contender."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = by_case(rows)
    figure, axis = plt.subplots(figsize=(11, 1.2 + 0.62 * len(cases)))
    for y, case in enumerate(cases):
        fastest = min(row.median_ms for row in case if row.role == "ours")
        for i, row in enumerate(sorted(case, key=lambda row: row.median_ms)):
            times = row.median_ms / fastest
            axis.scatter(times, y, color=_COLOURS[row.role], s=28, zorder=3)
            above = i % 2 == 0
            axis.annotate(
                row.backend,
                (times, y),
                xytext=(0, 6 if above else -6),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=6.5,
            )
    axis.set_yticks(range(len(cases)))
    axis.set_yticklabels(
        [f"{c[0].op} {c[0].direction.replace('_', '+')}\n{c[0].dtype} {c[0].shape}" for c in cases], fontsize=7
    )
    axis.set_ylim(len(cases) - 0.4, -0.6)
    axis.set_xscale("log")
    axis.axvline(1, color="tab:green", linewidth=0.8)
    axis.grid(axis="x", which="both", alpha=0.25)
    axis.set_xlabel(
        "time, in times of our fastest backend (green: ours; blue: the same results; grey: less, or in two steps)"
    )
    axis.set_title(rows[0].machine, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
