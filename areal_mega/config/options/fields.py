"""How an option is declared: its default, help text and allowed values."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with a default, a help text and, where it has them, its allowed values.

    minimum and maximum belong to the allowed values themselves, above and below do not.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"help": help, "choices": choices, **bounds}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(cls: type, help: str) -> Any:
    """A dataclass field that holds a group of options."""
    return field(default_factory=cls, metadata={"help": help})
