"""Plans on paper: python tools/plan.py reshard --help, python tools/plan.py simulate --help

reshard: how weights get from one parallel layout into another. simulate: how long the steps of synchronous and
asynchronous runs take. Needs no GPU, no ranks and no weights: a folder's config.json or the name of a well-known model
is enough.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from areal_mega.config.errors import UserError
from areal_mega.resharding.assign import Devices
from areal_mega.resharding.coordinates import Layout
from areal_mega.resharding.known_models import KNOWN_MODELS, known_model
from areal_mega.resharding.layouts import MegatronGrid, SGLangGrid, file_layout, megatron_layout, sglang_layout
from areal_mega.resharding.lower_bound import lower_bound
from areal_mega.resharding.placement import place_engines
from areal_mega.resharding.plan import Plan, plan
from areal_mega.rollout.simulation import command as simulation

Grid = MegatronGrid | SGLangGrid
HOLDERS = {"megatron": (MegatronGrid, megatron_layout), "sglang": (SGLangGrid, sglang_layout)}
EXAMPLE = """example:
  python tools/plan.py reshard --model qwen3-235b-a22b \\
      --source megatron:tp=4,pp=4,ep=16,dp=4 --target sglang:tp=8,ep=8,count=8

source and target:
  megatron:tp=,pp=,dp=,cp=,ep=,etp=,vpp=,first_layers=,last_layers=
      ranks are tp * pp * dp * cp, in Megatron's order; ep * etp of the tp * cp * dp ranks of a stage divide the
      experts (etp is 1 unless given); first_layers and last_layers are the layers of the first and the last stage;
      where pp does not divide the layers, they are chosen, with a note
  sglang:tp=,ep=,count=
      count engines of tp ranks; ep is a part of tp

known models: """ + ", ".join(KNOWN_MODELS)


@dataclass(frozen=True)
class Report:
    """What --json writes. Bytes; max_in, max_out: of the device that receives or sends most. local_fraction: of what
    the target needs, the part that is on its devices already. full_gather_bytes: what would move if every target
    device were given the whole model, for comparison. seconds_to_plan: CPU seconds of one core, layouts included."""

    bytes_needed: int
    bytes_moved: int
    lower_bound: int
    max_in: int
    max_out: int
    local_fraction: float
    messages: int
    slices: int
    full_gather_bytes: int
    seconds_to_plan: float
    source_ranks: int
    target_ranks: int


def main() -> int:
    arguments = parser().parse_args()
    try:
        if arguments.command == "simulate":
            shown = simulation.run(arguments, config_of)
        else:
            found = reshard(arguments)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(asdict(found), indent=2) + "\n")
            shown = table(found, arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console().print(shown)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, dest="command", metavar="reshard | simulate")
    simulation.add_to(commands)
    command = commands.add_parser(
        "reshard",
        help="from one layout of ranks into another",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--model", required=True, help="Hugging Face folder (its config.json is read), or a known name"
    )
    command.add_argument("--source", required=True, help="holders of the weights, see below")
    command.add_argument("--target", required=True, help="ranks that need them, see below")
    command.add_argument("--colocated", action="store_true", help="the target's ranks are on the source's devices")
    command.add_argument(
        "--place", action="store_true", help="with --colocated: choose devices for the engines' ranks, not their order"
    )
    command.add_argument("--per-node", type=positive, default=8, help="devices of one machine (default 8)")
    command.add_argument("--bytes", type=positive, default=2, help="of one element (default 2: bfloat16)")
    command.add_argument(
        "--chunk-mb", type=positive, help="MiB that a rank receives at most at a time (default: all at once)"
    )
    command.add_argument("--json", metavar="FILE", help="write the figures there")
    return top


def positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


def reshard(arguments: argparse.Namespace) -> Report:
    """Make the plan that the arguments ask for."""
    hf = config_of(arguments.model)
    source, target = grid_of("--source", arguments.source, hf), grid_of("--target", arguments.target, hf)
    check(arguments, source, target)
    started = time.process_time()
    with phase("layouts"):
        sources, targets = layouts(hf, source), layouts(hf, target)
    first = 0 if arguments.colocated else source.world
    on = Devices(tuple(range(source.world)), tuple(range(first, first + target.world)), arguments.per_node)
    chunk = arguments.chunk_mb * 2**20 // arguments.bytes if arguments.chunk_mb else None
    with phase("plan"):
        made = plan(sources, targets, on, chunk)
        if arguments.place:
            assert isinstance(target, SGLangGrid)
            places = place_engines(made.overlap, on.source, target.tp, on.per_node)
            made = made.on(Devices(on.source, places, on.per_node))
    seconds = time.process_time() - started
    with phase("figures"):
        return report(hf, made, sources, targets, seconds, arguments)


def report(
    hf: Any, made: Plan, sources: list[Layout], targets: list[Layout], seconds: float, arguments: argparse.Namespace
) -> Report:
    size, found = arguments.bytes, made.statistics
    whole = file_layout(hf).numel
    held = [layout.numel for layout in sources] if arguments.colocated else [0] * len(targets)
    return Report(
        bytes_needed=found.needed * size,
        bytes_moved=found.moved * size,
        lower_bound=lower_bound(sources, targets, made.devices) * size,
        max_in=found.max_in * size,
        max_out=found.max_out * size,
        local_fraction=round(found.local_fraction, 6),
        messages=found.messages,
        slices=found.slices,
        full_gather_bytes=sum(whole - held[rank] for rank in range(len(targets))) * size,
        seconds_to_plan=round(seconds, 3),
        source_ranks=len(sources),
        target_ranks=len(targets),
    )


def config_of(model: str) -> Any:
    """The Hugging Face config of a folder, or the numbers of a known model."""
    path = Path(model)
    if not path.is_dir():
        return known_model(model)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}/config.json does not exist; --model takes a Hugging Face folder or a known name")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except ValueError as error:
        raise UserError(f"{path}/config.json cannot be read: {error}") from error


def grid_of(option: str, text: str, hf: Any) -> Grid:
    """``megatron:tp=4,pp=2`` as a grid of ranks."""
    holder, _, settings = text.partition(":")
    if holder not in HOLDERS:
        raise UserError(f"{option}={text}: expected {' or '.join(HOLDERS)}, then a colon, as in megatron:tp=4,pp=2")
    grid = HOLDERS[holder][0]
    known = [f.name for f in fields(grid) if not isinstance(f.default, bool)]
    values: dict[str, int] = {}
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.partition("=")
        if name not in known:
            raise UserError(f"{option}={text}: {holder} has no {name}; it has {', '.join(known)}")
        if not value.isdigit() or not int(value):
            raise UserError(f"{option}={text}: {name} needs a whole number above 0, as in {name}=2")
        values[name] = int(value)
    made = grid(**values)
    if isinstance(made, SGLangGrid):
        return made
    chosen = made.with_uneven_stages(hf.num_hidden_layers)
    if chosen != made:
        print(
            f"note: {option}: pp={made.pp} does not divide {hf.num_hidden_layers} layers; planned with "
            f"first_layers={chosen.first_layers},last_layers={chosen.last_layers}",
            file=sys.stderr,
        )
    return chosen


def check(arguments: argparse.Namespace, source: Grid, target: Grid) -> None:
    if arguments.place and not (arguments.colocated and isinstance(target, SGLangGrid)):
        raise UserError("--place chooses devices for engines on the trainers' devices: give --colocated, target sglang")
    if arguments.place and source.world != target.world:
        raise UserError(
            f"--place needs as many target ranks as source ranks; they are {target.world} and {source.world}"
        )
    if arguments.colocated and target.world > source.world:
        raise UserError(f"--colocated: the target has {target.world} ranks, the source only {source.world} devices")


def layouts(hf: Any, grid: Grid) -> list[Layout]:
    if isinstance(grid, MegatronGrid):
        return grid.layouts(lambda place: megatron_layout(hf, place))
    return grid.layouts(lambda place: sglang_layout(hf, place))


@contextmanager
def phase(name: str) -> Iterator[None]:
    console = Console(stderr=True)
    with console.status(f"{name} ..."):
        yield


def table(found: Report, arguments: argparse.Namespace) -> Table:
    gb = "{:,.3f} GB".format
    bound, gather = found.lower_bound, found.full_gather_bytes
    rows = {
        "needed by all target ranks": gb(found.bytes_needed / 1e9),
        "moved between devices": gb(found.bytes_moved / 1e9),
        "  over the lower bound": f"{found.bytes_moved / bound:.3f}" if bound else "nothing to move",
        "  of a full gather": f"{found.bytes_moved / gather:.1%}" if gather else "-",
        "already in place": f"{found.local_fraction:.1%}",
        "most into one device": gb(found.max_in / 1e9),
        "most out of one device": gb(found.max_out / 1e9),
        "  mean over the source": gb(found.bytes_moved / found.source_ranks / 1e9),
        "slices": f"{found.slices:,}",
        "messages": f"{found.messages:,}",
        "planned in (CPU)": f"{found.seconds_to_plan:.2f} s",
    }
    where = "on the same devices" if arguments.colocated else "on other devices"
    shown = Table(
        title=f"{arguments.model}: {found.source_ranks} → {found.target_ranks} ranks {where}", show_header=False
    )
    shown.add_column()
    shown.add_column(justify="right")
    for name, value in rows.items():
        shown.add_row(name, value)
    shown.caption = f"{arguments.source} → {arguments.target}"
    return shown


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
