"""What a folder of safetensors holds: whole Hugging Face tensors, one expert's by one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from areal_mega.resharding.coordinates import Box, Layout, Piece
from areal_mega.resharding.layouts.model import Model


def file_layout(hf: Any, critic: bool = False) -> Layout:
    """Of a model's folder as its config implies it.

    hf: Hugging Face config, or any object with its fields. critic: with a value head in the place of the output layer.

    Raises:
        UserError: the family is unknown.
    """
    return whole_tensors(dict(Model(hf, critic).tensors()))


def whole_tensors(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """A holder of whole tensors by their Hugging Face names, such as the headers of safetensors files list them."""
    pieces = [
        Piece(Box(name, (0,) * len(shape), shape), name, 0, contiguous_strides(shape)) for name, shape in shapes.items()
    ]
    return Layout(shapes, tuple(pieces))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In elements."""
    return tuple(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1] if shape else ()
