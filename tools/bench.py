"""Every operation of areal_mega.ops and each of its backends, next to torch and the packages of others.

python tools/bench.py [op ...] [--device cpu|cuda] [--peers] [--shapes small|real] [--json FILE] [--markdown FILE]
python tools/bench.py --rows FILE [--markdown FILE]
python tools/bench.py reshard [--json FILE]: updates of an engine's weights, see areal_mega/bench/reshard.py
python tools/bench.py delta --model FOLDER --text FILE: updates of what changed, see areal_mega/bench/delta.py

All get the same inputs and take turns (A B C A B C ...); times are medians. Bandwidths and rates are held against
those of this machine, measured first. Errors are against float64. docs/kernels.md explains the columns.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from areal_mega.bench import delta, reshard
from areal_mega.bench import rows as results
from areal_mega.bench.case import SHAPES, Plan, Skip
from areal_mega.bench.cases import OPERATIONS
from areal_mega.bench.clock import clock_of
from areal_mega.bench.limits import Limits, machine_name
from areal_mega.bench.measure import measure
from areal_mega.bench.plot import plot
from areal_mega.bench.rows import Row
from areal_mega.bench.table import WIDTH, skipped_lines, terminal_table, write_markdown
from areal_mega.config.errors import UserError

# Of timed rounds for each case. Slow contenders take longer: each has at least three rounds.
_SECONDS = {"small": 0.3, "real": 6.0}


def main() -> int:
    if sys.argv[1:2] == ["reshard"]:
        return reshard.main(sys.argv[2:])
    if sys.argv[1:2] == ["delta"]:
        return delta.main(sys.argv[2:])
    arguments = parse_arguments()
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        if arguments.rows:
            rows, skipped = results.read(arguments.rows), []
        else:
            rows, skipped = run(arguments, console)
        console.print(terminal_table(rows))
        for line in skipped:
            console.print(f"skipped: {line}", markup=False, highlight=False)
        if arguments.json:
            results.write(arguments.json, rows)
            picture = arguments.json.with_suffix(".png")
            plot(picture, rows)
            console.print(f"written: {arguments.json} and {picture}", markup=False, highlight=False)
        if arguments.markdown:
            write_markdown(arguments.markdown, rows)
    except (UserError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace, console: Console) -> tuple[list[Row], list[str]]:
    """The rows, and who did not take part, in words."""
    device = torch.device(arguments.device)
    plans: list[Plan] = []
    skipped: list[tuple[str, Skip]] = []
    for op in arguments.ops or OPERATIONS:
        own = OPERATIONS[op](arguments.shapes, device)
        plans += own
        if not own:
            skipped.append((op, Skip("everything", "runs on the CPU, see --device cpu")))
    rows: list[Row] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("the machine's limits", total=len(plans))
        limits, clock, machine = Limits(device), clock_of(device), machine_name(device)
        for plan in plans:
            progress.update(task, description=f"{plan.title}: inputs")
            if not console.is_terminal:  # where the bar shows only at the end
                console.print(f"measuring {plan.title}", markup=False, highlight=False)
            new, without = measure(
                *(plan, arguments.peers, _SECONDS[arguments.shapes], clock, limits, machine),
                say=lambda what, plan=plan: progress.update(task, description=f"{plan.title}: {what}"),
            )
            rows += new
            skipped += [(plan.op, skip) for skip in without]
            progress.advance(task)
    console.print(
        f"measured limits: read {limits.read:.4g} GB/s, copy {limits.copy:.4g} GB/s (both directions counted)"
    )
    return rows, skipped_lines(skipped)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="op", help=f"default: all, which are {', '.join(OPERATIONS)}")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default, help="default: cuda where there is one")
    parser.add_argument(
        "--peers", action="store_true", help="next to torch.compile and what is installed of others, too"
    )
    parser.add_argument("--shapes", choices=SHAPES, default="small", help="real: those of training; default: small")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows there, and a picture beside it (.png)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put our rows between the markers in this file")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="measure nothing: show the rows of an earlier --json")
    arguments = parser.parse_args()
    for op in arguments.ops:
        if op not in OPERATIONS:
            near = difflib.get_close_matches(op, OPERATIONS, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            parser.error(f"op {op} is unknown{hint}: expected some of {', '.join(OPERATIONS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here. Try --device cpu")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
