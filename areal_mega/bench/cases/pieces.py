"""Slices of many tensors to and from one buffer, as resharding moves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.bench.case import Case, Contender, Outputs, Plan, Shapes, Skip, Work, own_contenders
from areal_mega.ops import Piece, PieceTable

_PARTS = 8


def pack_pieces(shapes: Shapes, device: torch.device) -> list[Plan]:
    """The output is the buffer; the error is the part of its bytes that are wrong."""
    return _plans("pack_pieces", _pack, shapes, device)


def unpack_pieces(shapes: Shapes, device: torch.device) -> list[Plan]:
    """The outputs are the tensors; the error is the part of their elements that are wrong."""
    return _plans("unpack_pieces", _unpack, shapes, device)


class _Pieces:
    """Square weights, of which every other one is cut by columns, the rest by rows, and the buffer for all parts."""

    def __init__(self, count: int, side: int, device: torch.device) -> None:
        torch.manual_seed(0)
        part = side // _PARTS
        whole = torch.randn(count, side, side, device=device).to(torch.bfloat16)
        self.tensors = list(whole.unbind())
        self.views: list[Tensor] = []
        pieces: list[Piece] = []
        offset = 0
        for i, tensor in enumerate(self.tensors):
            for start in range(0, side, part):
                rows, columns = ((0, side), (start, start + part)) if i % 2 else ((start, start + part), (0, side))
                pieces.append(Piece(i, (rows[0], columns[0]), (rows[1], columns[1]), offset))
                self.views.append(tensor[slice(*rows), slice(*columns)])
                offset += self.views[-1].numel() * tensor.element_size()
        self.table = PieceTable.build(self.tensors, pieces, offset).to(device)
        self.buffer = torch.zeros(offset, dtype=torch.uint8, device=device)
        ends = [piece.offset for piece in pieces[1:]] + [offset]
        self.in_buffer = [
            self.buffer[piece.offset : end].view(torch.bfloat16).view(view.shape)
            for piece, end, view in zip(pieces, ends, self.views, strict=True)
        ]

    def case(
        self,
        ours: Callable[[str], Outputs],
        others: Sequence[Contender],
        peers: bool,
        shapes: Shapes,
        expected: Sequence[Tensor],
    ) -> Case:
        contenders, skipped = own_contenders(ours, self.buffer.device, shapes)
        contenders += others if peers else others[:1]
        if peers:
            skipped.append(Skip("torch.compile", "would unroll the loop over thousands of slices"))
        size = self.buffer.numel()
        inputs = self.buffer, *self.tensors
        return Case(contenders, skipped, inputs, Work(size, size), partial(_wrong, expected=expected))


def _plans(name: str, build: Callable[..., Case], shapes: Shapes, device: torch.device) -> list[Plan]:
    count, side = (8, 64) if shapes == "small" else (256, 1024)
    shape = f"{count * _PARTS} pieces of {count} x [{side}, {side}]"
    build = partial(build, count, side, device, shapes)
    return [Plan(name, "forward", shape, torch.bfloat16, device, build)]


def _pack(count: int, side: int, device: torch.device, shapes: Shapes, peers: bool) -> Case:
    x = _Pieces(count, side, device)

    def into_buffer(copy: Callable[[], object]) -> Outputs:
        copy()
        return (x.buffer,)

    def concatenate() -> None:
        torch.cat([view.reshape(-1).view(torch.uint8) for view in x.views], out=x.buffer)

    others = [
        Contender("torch loop of copy_", partial(into_buffer, lambda: _copy_each(x.in_buffer, x.views))),
        Contender("torch.cat", partial(into_buffer, concatenate)),
        Contender("torch._foreach_copy_", partial(into_buffer, lambda: torch._foreach_copy_(x.in_buffer, x.views))),
    ]
    expected = torch.cat([view.reshape(-1) for view in x.views]).view(torch.uint8)
    return x.case(
        lambda backend: into_buffer(lambda: ops.pack_pieces(x.tensors, x.table, x.buffer, backend)),
        *(others, peers, shapes, [expected]),
    )


def _unpack(count: int, side: int, device: torch.device, shapes: Shapes, peers: bool) -> Case:
    x = _Pieces(count, side, device)
    expected = [tensor.clone() for tensor in x.tensors]
    ops.pack_pieces(x.tensors, x.table, x.buffer, "reference")

    def into_tensors(copy: Callable[[], object]) -> Outputs:
        copy()
        return x.tensors

    def contender(name: str, copy: Callable[[], object]) -> Contender:
        return Contender(name, partial(into_tensors, copy))

    others = [
        contender("torch loop of copy_", lambda: _copy_each(x.views, x.in_buffer)),
        contender("torch._foreach_copy_", lambda: torch._foreach_copy_(x.views, x.in_buffer)),
    ]
    return x.case(
        lambda backend: into_tensors(lambda: ops.unpack_pieces(x.buffer, x.table, x.tensors, backend)),
        *(others, peers, shapes, expected),
    )


def _copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _wrong(outputs: Outputs, expected: Sequence[Tensor]) -> float:
    wrong = sum(int((y != exact).sum()) for y, exact in zip(outputs, expected, strict=True) if y is not None)
    return wrong / sum(exact.numel() for exact in expected)
