"""How every program starts and ends: options, checks, processes, one run directory, clear errors."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from areal_mega.config.checks import check
from areal_mega.config.command_line import parse
from areal_mega.config.derived import derive
from areal_mega.config.errors import UserError

# How long the other ranks leave the floor to the main rank when all of them meet the same error.
OTHER_RANKS_WAIT = 5.0


def launch(program: str, run: Callable[[Any, Any, Path], None], arguments: Sequence[str] | None = None) -> None:
    """Run ``run(options, topology, run_directory)`` on every rank and leave with the right exit status.

    An error on any rank ends that rank with status 1, upon which torchrun stops the others; the engine ends
    with the process that started it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        _run(program, run, list(sys.argv[1:] if arguments is None else arguments), rank, ranks)
    except UserError as error:
        if rank:
            time.sleep(OTHER_RANKS_WAIT)
        _die(f"\nerror: {error}", rank)
    except KeyboardInterrupt:
        _die("\ninterrupted", rank, status=130)
    except Exception:
        _die(traceback.format_exc(), rank)


def _run(program: str, run: Callable, arguments: list[str], rank: int, ranks: int) -> None:
    options = parse(program, arguments, main_rank=rank == 0)
    if options.dry_run:
        if rank == 0:
            from areal_mega.trainers.dry_run import show

            show(options)
        return
    if options.stand_ins:
        from areal_mega.trainers.stand_ins import with_stand_ins

        options = with_stand_ins(options)

    import torch

    check(options, ranks, torch.cuda.is_available())
    for said in derive(options):
        print(said, flush=True) if rank == 0 else None

    from areal_mega.runtime import distributed, resume

    topology = distributed.initialize(options.runtime, options.policy.parallel, options.seed)
    directory = topology.broadcast(resume.enter(options) if topology.is_main else None)
    run(options, topology, directory)
    topology.barrier()  # the main rank evaluates last, and process groups are left together
    distributed.shutdown()


def _die(message: str, rank: int, status: int = 1) -> None:
    """Leave at once: a rank that waits in a collective for others must not hold up the exit."""
    prefix = f"[rank {rank}] " if rank else ""
    print(prefix + message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
