"""Runs every variant of a grid with every seed, one after the other: python tools/grid.py configs/grid/algorithms.yaml

A grid is a YAML file: `options` of all runs, `seeds`, and `variants`, each with the options that make it. Finished runs
are not done again: interrupt it, change it, start it again, and it goes on with what is missing; a run that was under
way is begun anew. The figures so far are always in the grid's folder: results.json, table.md and curves.png.

More options for all runs stand behind the file: python tools/grid.py FILE steps=20
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from areal_mega.config.errors import UserError
from areal_mega.runtime.torchrun import torchrun

ACCURACY = "evaluation/accuracy"
FIELDS = {"options": list, "seeds": list, "variants": dict}


@dataclass(frozen=True)
class Cell:
    """A variant with a seed, and its run directory."""

    variant: str
    seed: int
    options: list[str]
    folder: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run left when it ended well."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def curve(self) -> dict[int, float]:
        """Held-out accuracy by step."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row[ACCURACY] for row in rows if ACCURACY in row}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", metavar="FILE", help="the grid, as in configs/grid/")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="more options for all runs")
    parser.add_argument("--output", metavar="DIR", help="folder of the runs and figures (default outputs/grid/NAME)")
    parser.add_argument("--ranks", type=int, default=2, help="of each run (default 2)")
    arguments = parser.parse_args()
    folder = Path(arguments.output or Path("outputs/grid") / Path(arguments.grid).stem)
    try:
        runs = cells(read_grid(arguments.grid), arguments.options, folder)
        failed = [run for run in runs if not done(run, arguments.ranks, runs, folder)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(runs, folder)
    for run in failed:
        print(f"failed: {run.variant}, seed {run.seed}; see above, and {run.folder}", file=sys.stderr)
    return 1 if failed else 0


def read_grid(path: str) -> dict[str, Any]:
    """The file, checked.

    Raises:
        UserError: it cannot be read, or lacks a field.
    """
    try:
        grid = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for name, kind in FIELDS.items():
        if not isinstance(grid, dict) or not isinstance(grid.get(name), kind) or not grid[name]:
            what = "a list" if kind is list else "names with lists of options"
            raise UserError(f"{path}: {name} must be {what}; a grid has {', '.join(FIELDS)}.")
    return grid


def cells(grid: dict[str, Any], more: Iterable[str], folder: Path) -> list[Cell]:
    """All runs, seed after seed, so that a grid that ends early compares all variants."""
    common = [*grid["options"], *more]
    return [
        Cell(name, seed, [*common, *(own or []), f"seed={seed}"], folder / f"{name}-seed{seed}")
        for seed in grid["seeds"]
        for name, own in grid["variants"].items()
    ]


def done(run: Cell, ranks: int, runs: list[Cell], folder: Path) -> bool:
    """Do the run if it is not done; the figures have it then."""
    if run.summary is not None:
        return True
    shutil.rmtree(run.folder, ignore_errors=True)
    number = runs.index(run) + 1
    print(f"[{number}/{len(runs)}] {run.variant}, seed {run.seed}: {' '.join(run.options)}", flush=True)
    where = [f"output={run.folder.parent}", f"run_name={run.folder.name}", "save=false", "telemetry.plot=false"]
    status = torchrun("areal_mega.tools.train_ppo", *run.options, *where, ranks=ranks)
    if status in (130, -2):
        raise KeyboardInterrupt
    write_figures(runs, folder)
    return status == 0


def write_figures(runs: list[Cell], folder: Path) -> None:
    """results.json, table.md and curves.png of the runs that are done."""
    ended = [run for run in runs if run.summary is not None]
    if not ended:
        return
    rows = [{"variant": run.variant, "seed": run.seed, "curve": run.curve, **(run.summary or {})} for run in ended]
    (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (folder / "table.md").write_text(table(ended))
    plot(ended, folder / "curves.png")


def table(runs: list[Cell]) -> str:
    """Markdown, a row for each variant."""
    lines = ["| variant | seeds | before | after | mean | seconds of RL |", "|---|---|---|---|---|---|"]
    for name, same in by_variant(runs).items():
        summaries = [run.summary or {} for run in same]
        after = [s["accuracy_after"] for s in summaries]
        seconds = ", ".join(f"{s['seconds_rl']:.0f}" for s in summaries)
        lines.append(
            f"| {name} | {', '.join(str(run.seed) for run in same)} | {summaries[0]['accuracy_before']:.1%} "
            f"| {', '.join(f'{a:.1%}' for a in after)} | {statistics.fmean(after):.1%} "
            f"| {seconds} |"
        )
    return "\n".join(lines) + "\n"


def plot(runs: list[Cell], path: Path) -> None:
    """Held-out accuracy by step: a line for each variant's mean, a band from its worst to its best seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5))
    styles = ["-", "--", ":"]
    for index, (name, same) in enumerate(by_variant(runs).items()):
        curves = [run.curve for run in same]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [[curve[step] for curve in curves] for step in steps]
        color, style = f"C{index % 10}", styles[index // 10 % len(styles)]
        axis.plot(steps, [statistics.fmean(v) for v in values], style, color=color, label=f"{name} ({len(same)})")
        axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.12)
    axis.set_xlabel("step")
    axis.set_ylabel("held-out accuracy")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, title="mean (seeds)", title_fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def by_variant(runs: list[Cell]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for run in runs:
        groups.setdefault(run.variant, []).append(run)
    return groups


def show(runs: list[Cell], folder: Path) -> None:
    write_figures(runs, folder)
    path = folder / "table.md"
    if path.exists():
        Console().print(path.read_text(), f"figures: {folder}/results.json, table.md, curves.png", sep="\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
