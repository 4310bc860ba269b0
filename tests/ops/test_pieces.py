"""Packing and unpacking of boxes of tensors, against torch's own slicing."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel, each_device_of, each_kernel_of, kernels_of
from torch import Tensor

from areal_mega import ops
from areal_mega.ops import Piece, PieceTable

PACK = kernels_of(ops.pack_pieces, "reference", "cpp", "cuda")
UNPACK = kernels_of(ops.unpack_pieces, "reference", "cpp", "cuda")
PAIRS = {name: (pack, UNPACK[name]) for name, pack in PACK.items()}

DTYPES = [torch.uint8, torch.bool, torch.bfloat16, torch.float32, torch.int64, torch.complex128]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Any bytes are good: they are only moved."""
    g = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 2 if dtype == torch.bool else 256, (prod(shape) * dtype.itemsize,), generator=g)
    return numbers.to(torch.uint8).view(dtype).view(shape)


def box(tensor: Tensor, piece: Piece) -> Tensor:
    return tensor[tuple(slice(a, b) for a, b in zip(piece.start, piece.stop, strict=True))]


def as_bytes(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype).copy_(x).view(-1).view(torch.uint8)


def packed(tensors: list[Tensor], pieces: list[Piece], buffer: Tensor) -> Tensor:
    """What packing has to make of the buffer."""
    expected = buffer.clone()
    for piece in pieces:
        content = as_bytes(box(tensors[piece.tensor], piece))
        expected[piece.offset : piece.offset + len(content)] = content
    return expected


def check_there_and_back(
    tensors: list[Tensor], pieces: list[Piece], size: int, kernels: list[tuple[Kernel, Kernel]]
) -> None:
    table = PieceTable.build(tensors, pieces, size)
    before = random_tensor((size,), torch.uint8, 1)
    expected = packed(tensors, pieces, before)
    for pack, unpack in kernels:
        buffer = before.clone()
        pack(tensors, table, buffer)
        assert torch.equal(buffer, expected)

        emptied = [empty_like(tensor) for tensor in tensors]
        should = [x.clone() for x in emptied]
        for piece in pieces:
            box(should[piece.tensor], piece).copy_(box(tensors[piece.tensor], piece))
        unpack(buffer, table, emptied)
        assert all(torch.equal(as_bytes(x), as_bytes(y)) for x, y in zip(emptied, should, strict=True))


def empty_like(tensor: Tensor) -> Tensor:
    """Zeros with the same strides, gaps included."""
    reach = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n)
    return torch.zeros(max(reach, 1), dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[Tensor], list[Piece], int]:
    """Tensors of any strides that do not overlap themselves, disjoint boxes of them, in any order in the buffer."""
    tensors, cut = [], []
    for index in range(draw(st.integers(0, 4))):
        sizes = draw(st.lists(st.integers(0, 6), max_size=5))
        order = draw(st.permutations(range(len(sizes))))
        steps = [draw(st.integers(1, 2)) for _ in sizes]
        whole = random_tensor(
            tuple(n * step for n, step in zip(sizes, steps, strict=True)), draw(st.sampled_from(DTYPES)), index
        )
        tensors.append(whole[tuple(slice(None, None, step) for step in steps)].permute(order))
        shape = tuple(tensors[-1].shape)
        starts = [0] * len(shape)
        ends = [draw(st.integers(0, n)) for n in shape]
        cut.append((index, tuple(starts), tuple(ends)))
        if shape:  # what is left along the first dimension
            cut.append((index, (ends[0], *starts[1:]), (shape[0], *ends[1:])))
    pieces, offset = [], draw(st.integers(0, 3))
    for index, start, stop in draw(st.permutations(cut)):
        pieces.append(Piece(index, start, stop, offset))
        offset += prod(pieces[-1].shape) * tensors[index].element_size() + draw(st.integers(0, 3))
    return tensors, pieces, offset


@each_device_of(PAIRS)
@settings(max_examples=200)
@given(problem=boxes())
def test_any_boxes_go_there_and_back(kernels: dict, problem: tuple[list[Tensor], list[Piece], int]) -> None:
    check_there_and_back(*problem, list(kernels.values()))


@each_kernel_of(PAIRS)
def test_large_pieces_that_blocks_of_work_cut_anywhere(kernel: tuple[Kernel, Kernel]) -> None:
    """More than what goes past the caches; runs of odd lengths, longer and shorter than a block, and short ones."""
    tensors = [
        random_tensor((1, 3_000_017), torch.uint8),
        random_tensor((700, 3001), torch.bfloat16)[:, 1:],
        random_tensor((1000, 2003), torch.uint8),
        random_tensor((301, 301), torch.float32).T,
    ]
    pieces, offset = [], 1
    for index, (rows, columns) in enumerate([(1, 3_000_017), (700, 2999), (1000, 1500), (301, 300)]):
        pieces.append(Piece(index, (0, 0), (rows, columns), offset))
        offset += rows * columns * tensors[index].element_size() + 1
    assert offset > 8 << 20
    check_there_and_back(tensors, pieces, offset, [kernel])


def test_contiguous_dimensions_are_one_run() -> None:
    x = torch.empty(4, 3, 5, 2, device="meta", dtype=torch.float32)
    rows = PieceTable.build([x], [Piece(0, (1, 0, 0, 0), (3, 3, 5, 2), 0)], 240).rows
    assert rows.tolist() == [[0, 120, 0, 240, 1, 0, 1, 0, 1, 0, 0]]
    rows = PieceTable.build([x], [Piece(0, (1, 1, 0, 0), (3, 3, 5, 2), 8)], 168).rows
    assert rows.tolist() == [[0, 160, 8, 80, 1, 0, 1, 0, 2, 120, 0]]


def test_parameters_are_filled_in_place_without_a_gradient() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 4))
    table = PieceTable.build([parameter], [Piece(0, (1, 0), (3, 2), 0)], 16)
    ops.unpack_pieces(torch.arange(1.0, 5.0).view(torch.uint8), table, [parameter])
    assert parameter.tolist() == [[0, 0, 0, 0], [1, 2, 0, 0], [3, 4, 0, 0]]
    assert parameter.is_leaf and parameter.grad_fn is None


def test_one_region_of_the_buffer_may_fill_two_tensors_but_not_be_filled_by_two() -> None:
    """Tied weights travel once."""
    tensors = [torch.zeros(2), torch.zeros(2)]
    table = PieceTable.build(tensors, [Piece(i, (0,), (2,), 0) for i in range(2)], 8)
    ops.unpack_pieces(torch.tensor([1.0, 2.0]).view(torch.uint8), table, tensors)
    assert [x.tolist() for x in tensors] == [[1, 2], [1, 2]]
    with pytest.raises(ValueError, match="pieces 0 and 1 overlap in the buffer"):
        ops.pack_pieces(tensors, table, torch.zeros(8, dtype=torch.uint8))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("first", [4, 5])
def test_boxes_that_overlap_in_a_tensor_can_be_packed_only(axis: int, first: int) -> None:
    x = random_tensor((8, 8), torch.uint8)
    stop, start = [8, 8], [0, 0]
    stop[axis], start[axis] = first, 4
    pieces = [Piece(0, (0, 0), tuple(stop), 0), Piece(0, tuple(start), (8, 8), 64)]
    table, buffer = PieceTable.build([x], pieces, 128), torch.zeros(128, dtype=torch.uint8)
    ops.pack_pieces([x], table, buffer)
    assert torch.equal(buffer, packed([x], pieces, torch.zeros_like(buffer)))
    if first == 4:
        ops.unpack_pieces(buffer, table, [x])
    else:
        with pytest.raises(ValueError, match="pieces 0 and 1 overlap in their tensor"):
            ops.unpack_pieces(buffer, table, [x])


def test_an_expanded_tensor_can_be_packed_only() -> None:
    x = torch.tensor([1, 2], dtype=torch.uint8).expand(3, 2)
    table, buffer = PieceTable.build([x], [Piece(0, (0, 0), (3, 2), 0)], 6), torch.zeros(6, dtype=torch.uint8)
    ops.pack_pieces([x], table, buffer)
    assert buffer.tolist() == [1, 2] * 3
    with pytest.raises(ValueError, match="elements of tensor 0 share memory"):
        ops.unpack_pieces(buffer, table, [x])


BAD_PIECES = {
    "tensor": (Piece(2, (0, 0), (1, 1), 0), "piece 1 is of tensor 2: expected one of the 1 tensors"),
    "outside": (Piece(0, (0, 0), (4, 6), 0), r"piece 1 .* to \[4, 6\]: expected a box inside tensor 0 .* \[4, 5\]"),
    "negative": (Piece(0, (-1, 0), (4, 5), 0), r"piece 1 goes from \[-1, 0\]"),
    "backwards": (Piece(0, (2, 0), (1, 5), 0), r"piece 1 goes from \[2, 0\] to \[1, 5\]"),
    "dimensions": (Piece(0, (0,), (4,), 0), r"piece 1 goes from \[0\] to \[4\]"),
    "buffer_end": (Piece(0, (0, 0), (4, 5), 1), "piece 1 takes the bytes 1 to 81 of a buffer of 80"),
    "buffer_start": (Piece(0, (0, 0), (4, 5), -1), "piece 1 takes the bytes -1 to 79"),
}


@pytest.mark.parametrize(("piece", "message"), BAD_PIECES.values(), ids=BAD_PIECES.keys())
def test_pieces_outside_are_named(piece: Piece, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PieceTable.build([torch.zeros(4, 5)], [Piece(0, (0, 0), (1, 1), 0), piece], 80)


BAD_CALLS = {
    "count": ([], torch.zeros(80, dtype=torch.uint8), "tensors has 0 entries: expected 1"),
    "shape": ([torch.zeros(5, 4)], torch.zeros(80, dtype=torch.uint8), r"tensors\[0\] is .*\(?\[?5, 4.* as the table"),
    "strides": ([torch.zeros(5, 4).T], torch.zeros(80, dtype=torch.uint8), r"tensors\[0\] is .*strides=\(1, 4\)"),
    "dtype": ([torch.zeros(4, 5).int()], torch.zeros(80, dtype=torch.uint8), r"tensors\[0\] is .*torch.int32"),
    "device": ([torch.zeros(4, 5, device="meta")], torch.zeros(80, dtype=torch.uint8), r"tensors\[0\] is .* on meta"),
    "buffer_dtype": ([torch.zeros(4, 5)], torch.zeros(80, dtype=torch.int8), "buffer is torch.int8"),
    "buffer_strides": ([torch.zeros(4, 5)], torch.zeros(160, dtype=torch.uint8)[::2], r"strides \[2\]: expected cont"),
    "buffer_short": ([torch.zeros(4, 5)], torch.zeros(79, dtype=torch.uint8), "buffer has 79 bytes: expected 80"),
    "table_device": ([torch.zeros(4, 5)], torch.zeros(80, dtype=torch.uint8, device="meta"), "table is on cpu"),
}


@pytest.mark.parametrize(("tensors", "buffer", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_calls_that_do_not_fit_the_table_are_named(tensors: list[Tensor], buffer: Tensor, message: str) -> None:
    table = PieceTable.build([torch.zeros(4, 5)], [Piece(0, (0, 0), (4, 5), 0)], 80)
    with pytest.raises(ValueError, match=message):
        ops.pack_pieces(tensors, table, buffer)
    with pytest.raises(ValueError, match=message):
        ops.unpack_pieces(buffer, table, tensors)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_torch_accepts_the_operators(backend: str) -> None:
    x = random_tensor((4, 6), torch.float32).nan_to_num()
    table = PieceTable.build([x], [Piece(0, (1, 1), (3, 4), 2)], 30)
    buffer = torch.zeros(30, dtype=torch.uint8)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        torch.ops.areal_mega.pack_pieces.default, ([x], table.rows, table.total, buffer, backend), test_utils=checks
    )
    torch.library.opcheck(
        torch.ops.areal_mega.unpack_pieces.default, (buffer, table.rows, table.total, [x], backend), test_utils=checks
    )


def test_compiles_into_one_graph() -> None:
    x = random_tensor((4, 6), torch.int64)
    table = PieceTable.build([x], [Piece(0, (1, 1), (3, 4), 0)], 48)

    def there_and_back(x: Tensor, buffer: Tensor, y: Tensor) -> Tensor:
        ops.pack_pieces([x], table, buffer)
        ops.unpack_pieces(buffer, table, [y])
        return y + 1

    y = torch.zeros_like(x)
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    result = compiled(x, torch.zeros(48, dtype=torch.uint8), y)
    assert torch.equal(y[1:3, 1:4], x[1:3, 1:4]) and torch.equal(result, y + 1)
