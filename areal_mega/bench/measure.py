"""Runs a case: every contender once for its errors, once for its memory, and then all in turn for their times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from areal_mega.bench.case import Case, Contender, NotApplicable, Outputs, Plan, Skip
from areal_mega.bench.clock import Clock, take_turns
from areal_mega.bench.limits import Limits
from areal_mega.bench.rows import Reading, Row, rows_of

_MIB = 2**20


def measure(
    plan: Plan, peers: bool, seconds: float, clock: Clock, limits: Limits, machine: str, say: Callable[[str], None]
) -> tuple[list[Row], list[Skip]]:
    """The rows of a planned case, and who did not take part.

    seconds: for the timed rounds of all contenders together. say: is told what is going on.
    Raises RuntimeError if no backend of the operation runs.
    """
    case = plan.build(peers)
    skipped = list(case.skipped)
    tried: list[tuple[Contender, float, float | None, float]] = []
    for contender in case.contenders:
        say(contender.name)
        try:
            tried.append((contender, *_try(contender, case, clock)))
        except Exception as error:
            skipped.append(Skip(contender.name, _reason(contender, error)))
    if not any(contender.role == "ours" for contender, *_ in tried):
        raise RuntimeError(f"{plan.title}: no backend runs: {skipped}")
    say(f"{len(tried)} contenders in turn")
    times = take_turns([contender for contender, *_ in tried], clock, seconds)
    readings = [
        Reading(contender, median(own), len(own), peak, outputs, error)
        for (contender, error, peak, outputs), own in zip(tried, times, strict=True)
    ]
    return rows_of(plan, case, readings, limits, machine), skipped


def _try(contender: Contender, case: Case, clock: Clock) -> tuple[float, float | None, float]:
    """Error, peak MiB and MiB of the outputs. The first run compiles what is compiled at run time."""
    if contender.reset:
        contender.reset()
    error = case.error(contender.run())
    if contender.reset:
        contender.reset()
    outputs, peak = clock.peak(contender.run)
    return error, peak, _own_memory(outputs, case.inputs)


def _own_memory(outputs: Outputs, inputs: Sequence[Tensor]) -> float:
    """MiB of the memory of outputs that is not an input's."""
    given = {x.untyped_storage().data_ptr() for x in inputs}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in outputs if x is not None}
    return sum(size for address, size in storages.items() if address not in given) / _MIB


def _reason(contender: Contender, error: Exception) -> str:
    """Why a contender cannot take part. What is wrong with a kernel of ours is no reason: it is raised again."""
    if contender.role == "ours" and not (isinstance(error, ValueError) and "has no such backend" in str(error)):
        raise error
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit into the memory"
    if isinstance(error, NotApplicable):
        return str(error)
    if contender.role == "ours":
        return "is no backend on this device"
    lines = str(error).strip().splitlines()
    return f"fails: {type(error).__name__}: {lines[0] if lines else ''}"
