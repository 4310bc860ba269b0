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
    figure, axis = plt.subplots(figsize=(15, 1.2 + 0.48 * len(cases)))
    for y, case in enumerate(cases):
        fastest = min(row.median_ms for row in case if row.role == "ours")
        order = sorted(case, key=lambda row: row.median_ms)
        for row in order:
            axis.scatter(row.median_ms / fastest, y, color=_COLOURS[row.role], s=28, zorder=3)
        # Beside the line, from left to right as its dots: names at the dots would cover each other.
        names = [f"{row.backend} {row.median_ms / fastest:.3g}" for row in order]
        half = -(-len(names) // 2)
        lines = [" · ".join(names)] if len(names) < 4 else [" · ".join(names[:half]) + " ·", " · ".join(names[half:])]
        axis.text(1.01, y, "\n".join(lines), transform=axis.get_yaxis_transform(), va="center", fontsize=7)
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
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
