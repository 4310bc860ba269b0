"""What a verifier says about a response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """value: 1 is right, 0 is wrong, between them is partly right. parts: further numbers by name, shown as metrics.

    note: why, in a few words. failed: the verifier itself gave up (time limit, crash); the response is then wrong.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    failed: bool = False

    @classmethod
    def of(cls, result: Any) -> Score:
        """The score a verifier returned: a `Score`, or just a number or truth value.

        Raises:
            TypeError: it is something else, or not finite.
        """
        if isinstance(result, cls):
            return result
        value = float(result)  # TypeError by itself
        if value != value or value in (float("inf"), float("-inf")):
            raise TypeError(f"a verifier returned {value}, not a finite number")
        return cls(value)
