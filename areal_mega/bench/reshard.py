"""Planned weight updates next to what others do: the same model, engine and machine, turn by turn.

python tools/bench.py reshard [--json FILE] [--parallel pipeline=2] [--engine-tensor 1] [--rounds 5]

planned: `WeightSync`. tensor: full gather to rank 0, then SGLang's update_weights_from_tensor (one buffer of shared
memory, SGLang's load_weights). distributed: full gather to rank 0, then a broadcast to SGLang's workers
(update_weights_from_distributed, in flattened buckets). disk: a Hugging Face folder in shared memory, then
update_weights_from_disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from areal_mega.runtime.torchrun import torchrun

# The shape of SmolLM2-135M (its config.json on the Hugging Face hub).
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def main(arguments: list[str]) -> int:
    """Start the ranks and the engine, measure, print; returns an exit status."""
    parser = argparse.ArgumentParser(prog="tools/bench.py reshard", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--parallel", default="pipeline=2", help="the trainers' layout, as in tensor=2,pipeline=2")
    parser.add_argument("--ranks", type=int, default=2, help="training ranks")
    parser.add_argument("--engine-tensor", type=int, default=1, help="tensor-parallel size of the engine")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5, help="updates of each kind, after one that does not count")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: a random model like SmolLM2-135M)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="areal-bench-") as folder:
        job = {
            "model": str(options.model or save_model(Path(folder) / "model")),
            "folder": folder,
            "parallel": {k: int(v) for k, v in (part.split("=") for part in options.parallel.split(","))},
            "engine_tensor": options.engine_tensor,
            "dtype": options.dtype,
            "rounds": options.rounds,
        }
        if status := torchrun("areal_mega.bench.reshard_worker", json.dumps(job), ranks=options.ranks):
            return status
        found = json.loads((Path(folder) / "found.json").read_text())
    rows = summary(found, f"{options.parallel} on {options.ranks} ranks -> tp{options.engine_tensor}", options.dtype)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def save_model(folder: Path) -> Path:
    """A random model of SmolLM2-135M's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M)).save_pretrained(folder)
    return folder


def summary(found: dict, layout: str, dtype: str) -> list[dict]:
    """A row for each method. ratio: its median time over that of the planned update."""
    planned = median(found["seconds"]["planned"])
    return [
        {
            "method": method,
            "layout": layout,
            "dtype": dtype,
            "model_bytes": found["model_bytes"],
            "median_seconds": median(seconds),
            "seconds": seconds,
            "ratio": median(seconds) / planned,
            "load": found["load"],
            **({"report": found["report"]} if method == "planned" else {}),
        }
        for method, seconds in found["seconds"].items()
    ]


def show(rows: list[dict]) -> None:
    first = rows[0]
    table = Table(title=f"{first['layout']}, {first['dtype']}, {first['model_bytes'] / 1e6:.0f} MB of weights")
    for column in ("update", "median s", "s", "times the planned one"):
        table.add_column(column, justify="left" if column == "update" else "right")
    for row in rows:
        every = " ".join(f"{s:.2f}" for s in row["seconds"])
        table.add_row(row["method"], f"{row['median_seconds']:.3f}", every, f"{row['ratio']:.2f}")
    console = Console()
    console.print(table)
    moved, bound = (first["report"][name] for name in ("bytes_moved", "lower_bound"))
    console.print(f"planned: {moved:,} bytes moved, lower bound {bound:,}; load {first['load']}")
