"""Random layouts for hypothesis, and the elements they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from areal_mega.resharding.coordinates import Box, Layout, Piece
from areal_mega.resharding.layouts import contiguous_strides


@st.composite
def shapes(draw):
    """Hugging Face tensors of up to three dimensions."""
    count = draw(st.integers(1, 4))
    dims = st.lists(st.integers(1, 9), min_size=1, max_size=3)
    return {f"t{i}": tuple(draw(dims)) for i in range(count)}


@st.composite
def groups_of_layouts(draw, tensors, ranks, whole):
    """A layout for each rank; some share one. whole: together they have every element."""
    distinct = draw(st.integers(1, ranks))
    kept: list[list[Box]] = [[] for _ in range(distinct)]
    for name, shape in tensors.items():
        for box in draw(partitions(name, shape)):
            holders = draw(st.sets(st.integers(0, distinct - 1), min_size=1 if whole else 0))
            for holder in holders:
                kept[holder].append(box)
        if draw(st.booleans()):  # boxes that overlap those of the partition
            extra = draw(boxes(name, shape))
            holder = draw(st.integers(0, distinct - 1))
            if whole or extra not in kept[holder]:
                kept[holder].append(extra)
    made = [draw(layout_of(boxes)) for boxes in kept]
    numbers = list(range(distinct)) + [draw(st.integers(0, distinct - 1)) for _ in range(ranks - distinct)]
    return [made[number] for number in numbers]


@st.composite
def partitions(draw, name, shape):
    """Disjoint boxes that cover a tensor: cut again and again along some axis."""
    parts = [Box(name, (0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 5))):
        box = parts.pop(draw(st.integers(0, len(parts) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(box.start[axis], box.stop[axis]))
        sides = (
            Box(name, box.start, (*box.stop[:axis], at, *box.stop[axis + 1 :])),
            Box(name, (*box.start[:axis], at, *box.start[axis + 1 :]), box.stop),
        )
        parts += [side for side in sides if side.numel]
    return parts


@st.composite
def boxes(draw, name, shape):
    edges = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    return Box(name, tuple(a for a, _ in edges), tuple(b for _, b in edges))


@st.composite
def layout_of(draw, boxes):
    """A holder's own tensors, of one or two boxes each, one behind the other; some with padding."""
    order = draw(st.permutations(boxes))
    pieces: list[Piece] = []
    sizes: dict[str, int] = {}
    for number, box in enumerate(order):
        parameter = f"p{number // 2}"
        offset = sizes.get(parameter, 0)
        pieces.append(Piece(box, parameter, offset, contiguous_strides(box.shape)))
        sizes[parameter] = offset + box.numel + draw(st.integers(0, 1))
    return Layout({name: (size,) for name, size in sizes.items()}, tuple(pieces))


def elements(tensors):
    """The whole tensors; every element has another number."""
    first, made = 1, {}
    for name, shape in tensors.items():
        size = int(np.prod(shape))
        made[name] = np.arange(first, first + size).reshape(shape)
        first += size
    return made


def view(array, piece):
    """The piece's elements in a holder's own tensor ``array``, which is flat."""
    strides = tuple(s * array.itemsize for s in piece.strides)
    return np.lib.stride_tricks.as_strided(array[piece.offset :], piece.box.shape, strides)


def filled(layout, tensors):
    """A holder's own tensors, as they should be."""
    own = {name: np.zeros(int(np.prod(shape)), np.int64) for name, shape in layout.shapes.items()}
    for piece in layout.pieces:
        view(own[piece.parameter], piece)[...] = tensors[piece.box.name][piece.box.slices]
    return own
