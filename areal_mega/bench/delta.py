"""Which part of the weights changes in a training step, and what updates take that send only that.

python tools/bench.py delta --model FOLDER --text FILE... [--json FILE] [--lr 1e-6 1e-5] [--steps 5]

A model is fine-tuned (Adam, float32 main parameters) on runs of tokens of the text files. After each step a real engine
on "other devices" gets the weights twice: as a delta, and whole. Both are compared by checksums once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from areal_mega.runtime.torchrun import torchrun


def main(arguments: list[str]) -> int:
    """Start the rank and the engine, train, measure, print; returns an exit status."""
    parser = argparse.ArgumentParser(prog="tools/bench.py delta", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--text", type=Path, required=True, nargs="+", help="files to train on")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-6, 1e-5], help="learning rates, each from the start")
    parser.add_argument("--steps", type=int, default=5, help="training steps for each learning rate")
    parser.add_argument("--sequences", type=int, default=4, help="runs of 128 tokens in a step")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="areal-bench-") as folder:
        job = {
            "model": str(options.model.resolve()),
            "text": [str(file.resolve()) for file in options.text],
            "folder": folder,
            "lr": options.lr,
            "steps": options.steps,
            "sequences": options.sequences,
            "dtype": options.dtype,
        }
        if status := torchrun("areal_mega.bench.delta_worker", json.dumps(job), ranks=1):
            return status
        rows = json.loads((Path(folder) / "found.json").read_text())
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each step."""
    table = Table(title=f"deltas, {rows[0]['dtype']}, {rows[0]['bytes_full'] / 1e6:.0f} MB of weights")
    for column in ("lr", "step", "changed", "bytes", "of whole", "s", "s whole", "pack s", "pack s whole"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['lr']:g}",
            str(row["step"]),
            f"{row['changed']:.2%}",
            f"{row['bytes_moved'] / 1e6:.1f} MB",
            f"{row['bytes_moved'] / row['bytes_full']:.1%}",
            f"{row['seconds']:.3f}",
            f"{row['seconds_whole']:.3f}",
            f"{row['seconds_pack']:.3f}",
            f"{row['seconds_pack_whole']:.3f}",
        )
    Console(width=120).print(table)
