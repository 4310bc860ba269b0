"""Several training sets as one, by weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from areal_mega.config.options import DataOptions, DataSetOptions

T = TypeVar("T")


def training_sets(data: DataOptions) -> list[tuple[str, DataSetOptions]]:
    """data.train and the sets of data.mix, each with the option that names it."""
    first = DataSetOptions(data.train, data.weight, data.format, data.prompt_type, data.task)
    return [("data.train", first), *((f"data.mix[{i}].path", s) for i, s in enumerate(data.mix))]


def validation_set(data: DataOptions) -> DataSetOptions:
    """data.validation, whose lines are read as those of data.train."""
    return DataSetOptions(str(data.validation), 1.0, data.format, data.prompt_type, data.task)


def mixed(sets: Sequence[Sequence[T]], weights: Sequence[float]) -> list[T]:
    """One pass over all sets, in which they occur in proportion to their weights, evenly spread.

    The pass is just so long that every item occurs: the set with the most items for its weight is gone through once,
    the others as often as their weight asks for.
    """
    passes = max(len(items) / weight for items, weight in zip(sets, weights, strict=True))
    counts = [round(passes * weight) for weight in weights]
    places = [((k + 0.5) / count, i, k) for i, count in enumerate(counts) for k in range(count)]
    return [sets[i][k % len(sets[i])] for _, i, k in sorted(places)]
