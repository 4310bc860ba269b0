"""How long responses are: from a formula, or from a run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

from areal_mega.config.errors import UserError


def log_normal(mean: float, spread: float, longest: int, seed: int) -> Iterator[int]:
    """Endless response lengths, cut at ``longest``; spread: deviation of their logarithm. The mean is that of the
    uncut ones."""
    rng = random.Random(seed)
    centre = math.log(mean) - spread**2 / 2
    while True:
        yield max(1, min(longest, round(rng.lognormvariate(centre, spread))))


def read_lengths(path: str, seed: int) -> Iterator[int]:
    """Endless lengths drawn from a trace: a JSONL file with a number, or a field ``length``, in each line.

    Raises:
        UserError: the file or a line cannot be used; both are named.
    """
    lengths = []
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise UserError(f"--lengths {path}: cannot be read: {error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            length = value["length"] if isinstance(value, dict) else value
        except (ValueError, KeyError):
            length = None
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise UserError(f'{path}:{number}: expected a whole number above 0, or {{"length": NUMBER}}.')
        lengths.append(length)
    if not lengths:
        raise UserError(f"{path} has no lines; write the length of a response into each.")
    return _drawn(lengths, seed)


def _drawn(lengths: list[int], seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield rng.choice(lengths)
