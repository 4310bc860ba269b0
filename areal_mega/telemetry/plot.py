"""The curves of a run as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from areal_mega.telemetry.journal import Row

# Curves whose values span more than this factor are drawn on a logarithmic scale.
LOGARITHMIC = 30.0


def plot_run(path: Path, rows: Sequence[Row], panels: Sequence[tuple[str, Sequence[str]]], title: str) -> None:
    """Draw one panel for each (title, metric keys) that has at least one value."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(name, [k for k in keys if any(r.get(k) is not None for r in rows)]) for name, keys in panels]
    panels = [p for p in panels if p[1]]
    if not panels:
        return
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.6 * columns, 3.1 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, keys) in zip(axes.flat, panels, strict=False):
        drawn: list[float] = []
        for key in keys:
            points = [(r["step"], value) for r in rows if (value := r.get(key)) is not None]
            drawn += [value for _, value in points]
            axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 12 else None, markersize=3, label=key)
        if min(drawn) > 0 and max(drawn) / min(drawn) > LOGARITHMIC:
            axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
