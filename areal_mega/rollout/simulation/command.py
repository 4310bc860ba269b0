"""``tools/plan.py simulate``: synchronous and asynchronous runs on paper, beside published ratios."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from areal_mega.config.errors import UserError
from areal_mega.rollout.simulation.cluster import Cluster, Outcome, simulate
from areal_mega.rollout.simulation.costs import GPUS, Costs
from areal_mega.rollout.simulation.lengths import log_normal, read_lengths

EXAMPLE = """examples:
  python tools/plan.py simulate --model qwen2.5-7b --gpus 192 --tensor 1 --eta 0,1,4,8
  python tools/plan.py simulate --model qwen2.5-1.5b --gpus 128 --lengths lengths.jsonl
  python tools/plan.py simulate --published

The first row generates and trains on all GPUs in turns; the others give --generation-share of them to the engines.
Peaks of GPUs are published ones. What is reached of them (--training, --decoding, --overhead) is an assumption: use the
figures of your own runs. Not simulated: rewards, the critic, failures, communication between GPUs.
"""


@dataclass(frozen=True)
class Published:
    """Runs of AReaL on H800 (arXiv:2505.24298, table 1): nodes of 8 GPUs, and hours synchronous over asynchronous."""

    model: str
    nodes: int
    tensor: int
    eta: int
    ratio: float


# 512 prompts of 16 answers, at most 27,648 new tokens, 3/4 of the GPUs for generation (table 3 there). An engine's GPUs
# and the mean length, of about 8,250 tokens, are those of AReaL v0.2's recipes and figures.
PUBLISHED = (
    Published("qwen2.5-1.5b", 16, 1, 8, 2.77),
    Published("qwen2.5-7b", 24, 1, 8, 2.27),
    Published("qwen2.5-32b", 48, 4, 4, 1.64),
)


def add_to(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser(
        "simulate",
        help="steps of synchronous and asynchronous runs, on paper",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole, share = number(int, 1), number(float, 0.01, 1)
    command.add_argument("--model", help="Hugging Face folder (its config.json is read), or a known name")
    command.add_argument("--published", action="store_true", help="three published runs, beside their ratios")
    command.add_argument("--gpu", choices=GPUS, default="h800", help="kind of GPU (default h800)")
    command.add_argument("--gpus", type=whole, default=128, help="how many (default 128)")
    command.add_argument("--generation-share", type=share, default=0.75, help="of the GPUs (default 0.75)")
    command.add_argument("--tensor", type=whole, default=1, help="GPUs of an engine (default 1)")
    command.add_argument("--prompts", type=whole, default=512, help="of a step (default 512)")
    command.add_argument("--samples", type=whole, default=16, help="of a prompt (default 16)")
    command.add_argument("--prompt-length", type=whole, default=256, help="tokens of a prompt (default 256)")
    command.add_argument("--mean-length", type=whole, default=8250, help="of a response, in tokens (default 8250)")
    command.add_argument("--spread", type=number(float, 0), default=0.8, help="of its logarithm (default 0.8)")
    command.add_argument("--max-length", type=whole, default=27648, help="longest response (default 27648)")
    command.add_argument("--lengths", metavar="FILE", help="response lengths of a run, a number a line")
    command.add_argument("--eta", type=etas, default=(0, 1, 4, 8), help="staleness bounds (default 0,1,4,8)")
    command.add_argument("--steps", type=whole, default=8, help="measured steps, after two others (default 8)")
    command.add_argument("--training", type=share, default=0.4, help="share of the peak FLOP/s (default 0.4)")
    command.add_argument("--decoding", type=share, default=0.6, help="share of the bandwidth (default 0.6)")
    command.add_argument("--overhead", type=number(float, 0), default=6.0, help="ms of a decoding step (default 6)")
    command.add_argument("--update", type=number(float, 0), default=3.0, help="seconds of a weight update (default 3)")
    command.add_argument("--seed", type=int, default=1, help="of the lengths")
    command.add_argument("--json", metavar="FILE", help="write the figures there")


def run(arguments: argparse.Namespace, config_of: Callable[[str], Any]) -> Table:
    """Simulate what the arguments ask for. config_of: reads a model's config.

    Raises:
        UserError: the arguments contradict each other.
    """
    if arguments.published == bool(arguments.model):
        raise UserError("simulate needs either --model or --published")
    found = _published(arguments, config_of) if arguments.published else _rows(arguments, config_of(arguments.model))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
    return _published_table(found) if arguments.published else _table(found, arguments)


def _rows(a: argparse.Namespace, hf: Any) -> list[dict[str, Any]]:
    """One row for each bound, the synchronous one on all GPUs first."""
    costs = Costs.of(
        hf,
        GPUS[a.gpu],
        tensor=a.tensor,
        training=a.training,
        decoding=a.decoding,
        overhead=a.overhead / 1000,
    )
    generating = round(a.gpus * a.generation_share) // a.tensor * a.tensor
    if not 0 < generating < a.gpus:
        raise UserError(
            f"--generation-share {a.generation_share:g} of --gpus {a.gpus} leaves {generating} for engines of --tensor "
            f"{a.tensor}; both sides need some"
        )
    if costs.cache_tokens < a.prompt_length + a.max_length:
        raise UserError(
            f"an engine of {a.tensor} {a.gpu.upper()} has room for {costs.cache_tokens:,} tokens beside the weights, "
            f"less than one response of --max-length {a.max_length}; raise --tensor"
        )
    plans = [("in turns", 0, True), *((f"eta {eta}", eta, False) for eta in a.eta)]
    rows = []
    with Console(stderr=True).status("simulating ...") as status:
        for name, eta, colocated in plans:
            status.update(f"simulating {name} ...")
            cluster = Cluster(
                costs,
                engines=(a.gpus if colocated else generating) // a.tensor,
                trainers=a.gpus if colocated else a.gpus - generating,
                eta=eta,
                prompts=a.prompts,
                samples=a.samples,
                prompt_tokens=a.prompt_length,
                mean_length=a.mean_length,
                update=a.update,
                colocated=colocated,
            )
            rows.append({"plan": name, **asdict(simulate(cluster, _lengths(a), a.steps))})
    return rows


def _published(a: argparse.Namespace, config_of: Callable[[str], Any]) -> list[dict[str, Any]]:
    rows = []
    for known in PUBLISHED:
        same = argparse.Namespace(
            **{**vars(a), "gpus": 8 * known.nodes, "tensor": known.tensor, "eta": (0, known.eta), "gpu": "h800"}
        )
        turns, apart, asynchronous = (Outcome(**_without_plan(row)) for row in _rows(same, config_of(known.model)))
        rows.append(
            {
                "model": known.model,
                "gpus": 8 * known.nodes,
                "eta": known.eta,
                "step_seconds": asynchronous.step_seconds,
                "ratio_in_turns": turns.step_seconds / asynchronous.step_seconds,
                "ratio_apart": apart.step_seconds / asynchronous.step_seconds,
                "published_ratio": known.ratio,
            }
        )
    return rows


def _without_plan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "plan"}


def _lengths(a: argparse.Namespace) -> Iterator[int]:
    if a.lengths:
        return read_lengths(a.lengths, a.seed)
    return log_normal(a.mean_length, a.spread, a.max_length, a.seed)


def _table(rows: list[dict[str, Any]], a: argparse.Namespace) -> Table:
    table = Table(title=f"{a.model} on {a.gpus} {a.gpu.upper()}, {a.prompts} x {a.samples} samples a step")
    for name in ("", "s/step", "tokens/s", "speed-up", "trainers idle", "engines idle", "staleness"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(
            row["plan"],
            f"{row['step_seconds']:.0f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{rows[0]['step_seconds'] / row['step_seconds']:.2f}",
            f"{row['trainer_idle']:.0%}",
            f"{row['engine_idle']:.0%}",
            f"{row['staleness_mean']:.1f}, at most {row['staleness_max']}",
        )
    return table


def _published_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="synchronous over asynchronous time on H800")
    for name in ("model", "GPUs", "eta", "s/step", "in turns", "apart", "published"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["gpus"]),
            str(row["eta"]),
            f"{row['step_seconds']:.0f}",
            f"{row['ratio_in_turns']:.2f}",
            f"{row['ratio_apart']:.2f}",
            f"{row['published_ratio']:.2f}",
        )
    return table


def number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], float]:
    """A parser of numbers within bounds, for argparse."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            what = "whole number" if kind is int else "number"
            bounds = f"from {least:g} to {most:g}" if most < float("inf") else f"of at least {least:g}"
            raise argparse.ArgumentTypeError(f"expected a {what} {bounds}, got {text}")
        return value

    return parse


def etas(text: str) -> tuple[int, ...]:
    """``0,1,4`` as bounds of the staleness, each larger than the one before."""
    parts = text.split(",")
    values = [int(part) for part in parts if part.isdigit()]
    if len(values) != len(parts) or any(b <= a for a, b in pairwise(values)):
        raise argparse.ArgumentTypeError(f"expected growing whole numbers, as in 0,1,4, got {text}")
    return tuple(values)
