"""Puts a holder's tensors together from parts of Hugging Face tensors."""

from __future__ import annotations

from math import prod

from areal_mega.resharding.coordinates import Box, Layout, Piece

Interval = tuple[int, int]


class Assembly:
    """A layout in the making: every part that is added stands below the parts its parameter already has."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._rows: dict[str, int] = {}
        self._widths: dict[str, tuple[int, ...]] = {}
        self._stacks: dict[str, int] = {}

    def add(
        self,
        parameter: str,
        tensor: str,
        shape: tuple[int, ...],
        rows: Interval,
        columns: Interval | None = None,
        *,
        padded_to: int | None = None,
        width: int | None = None,
    ) -> None:
        """The part of a Hugging Face tensor of ``shape`` in these rows, and of a matrix in these columns (None: all).

        padded_to, width: rows and columns that it takes in the parameter, where these are more.
        """
        start, stop = rows
        across = [columns or (0, size) for size in shape[1:]]
        taken = tuple(right - left for left, right in across) if width is None else (width,)
        box = Box(tensor, (start, *(left for left, _ in across)), (stop, *(right for _, right in across)))
        strides = (prod(taken), 1)[: len(shape)]
        above = self._rows.get(parameter, 0)
        if box.numel:
            self._pieces.append(Piece(box, parameter, above * prod(taken), strides))
        self._rows[parameter] = above + (stop - start if padded_to is None else padded_to)
        self._widths[parameter] = taken

    def stack(self, parameter: str, count: int) -> None:
        """Give the parameter a first dimension of ``count``, over which its rows are divided."""
        self._stacks[parameter] = count

    def layout(self) -> Layout:
        shapes = {}
        for parameter, rows in self._rows.items():
            stack = self._stacks.get(parameter)
            first = (rows,) if stack is None else (stack, rows // stack)
            shapes[parameter] = (*first, *self._widths[parameter])
        return Layout(shapes, tuple(self._pieces))


def share(size: int, parts: int, part: int) -> Interval:
    """The interval of the ``part``-th of ``parts`` equal parts."""
    length = size // parts
    return part * length, (part + 1) * length
