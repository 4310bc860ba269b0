"""What is particular to the CUDA kernels: the cut of their work, wide accesses, streams. What an operation means is in
test_gae and test_pieces, which run them too. On the CPU they are emulated, see cuda_emulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from cuda_emulation import emulated, lanes_take_turns_backwards
from torch import Tensor

from areal_mega import ops
from areal_mega.ops import Piece, PieceTable, backend, native

HAS_GPU = torch.cuda.is_available() and bool(backend.cuda_architectures())
each_device = pytest.mark.parametrize(
    "device", ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if HAS_GPU else [])]
)
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device, and areal_mega._C with CUDA kernels")


def with_cuda_kernels(operation: Callable, device: str) -> Callable:
    return emulated(operation) if device == "cpu" else partial(operation, backend="cuda")


# Of csrc/cuda/gae.cu.
TILE, STRETCH = 256, 1024


def gae_inputs(lengths: list[int], device: str) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    n, b = sum(lengths), len(lengths)
    inputs = {
        "rewards": torch.randn(n, generator=g),
        "values": torch.randn(n, generator=g),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "loss_mask": torch.rand(n, generator=g) < 0.8,
        "bootstrap": torch.randn(b, generator=g),
        "lam": torch.rand(b, generator=g) * 0.1 + 0.9,
    }
    return {name: x.to(device) for name, x in inputs.items()}


LENGTHS = {
    "tiles": [length + more for length in (0, TILE, 2 * TILE) for more in (-1, 0, 1) if length + more >= 0],
    "stretches": [n * STRETCH + more for n in (1, 2, 3) for more in (-1, 0, 1)],
    "more_stretches_than_lanes": [5, 32 * STRETCH, 33 * STRETCH + 1, 5],
    "many_sequences": [1, 0, 2, 0, 0, 3] * 700,
    "nothing": [0, 0, 0],
    "no_sequence": [],
}


@each_device
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_gae_wherever_work_is_cut(lengths: list[int], device: str) -> None:
    numbers = {"gamma": 0.999, "critic_lam": 1.0}
    actual = with_cuda_kernels(ops.gae, device)(**numbers, **gae_inputs(lengths, device))
    expected = ops.gae(backend="cpp", **numbers, **gae_inputs(lengths, "cpu"))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-4, atol=1e-4)


def test_gae_does_not_depend_on_the_turns_of_the_lanes() -> None:
    gae, inputs = emulated(ops.gae), gae_inputs([STRETCH + 3, 7, 0, 5 * STRETCH], "cpu")
    forwards = gae(gamma=0.99, **inputs)
    with lanes_take_turns_backwards():
        backwards = gae(gamma=0.99, **inputs)
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def check_pieces(tensors: list[Tensor], pieces: list[Piece], size: int, device: str) -> None:
    """Against the C++ backend, with buffers at every alignment that makes a difference."""
    pack, unpack = (with_cuda_kernels(operation, device) for operation in (ops.pack_pieces, ops.unpack_pieces))
    table = PieceTable.build(tensors, pieces, size)
    for residue in (0, 1, 2, 4, 8, 15):
        memory = random_bytes(size + 32).to(device)
        buffer = memory[-memory.data_ptr() % 16 + residue :][:size]
        expected = buffer.cpu()
        ops.pack_pieces(tensors, table, expected, backend="cpp")
        pack([x.to(device) for x in tensors], table.to(device), buffer)
        assert torch.equal(buffer.cpu(), expected)
        there, here = ([torch.zeros_like(x, device=place) for x in tensors] for place in ("cpu", device))
        ops.unpack_pieces(expected, table, there, backend="cpp")
        unpack(buffer, table.to(device), here)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(there, here, strict=True))


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("run", [1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 1000, 1008, 1023, 1024, 1025, 1040, 5000])
@each_device
def test_pieces_of_any_run_at_any_alignment(run: int, device: str) -> None:
    rows = 20000 // run
    tensors = [random_bytes(rows, pitch) for pitch in (run, run + 1, run + 4, run + 16)]
    pieces = [Piece(i, (0, x.shape[1] - run), (rows, x.shape[1]), i * rows * run) for i, x in enumerate(tensors)]
    check_pieces(tensors, pieces, 4 * rows * run, device)


@pytest.mark.parametrize(("size", "itemsize"), product([3, 40], [1, 2, 4, 8]))
@each_device
def test_pieces_with_three_outer_dimensions(size: int, itemsize: int, device: str) -> None:
    shape = (5, 6, 7, size)
    whole = random_bytes(*(n + 1 for n in shape[:-1]), (size + 2) * itemsize)
    tensor = whole.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[itemsize])
    piece = Piece(0, (1, 0, 1, 1), tuple(n + 1 if i in (0, 2, 3) else n for i, n in enumerate(shape)), 0)
    check_pieces([tensor], [piece], itemsize * 5 * 6 * 7 * size, device)


@each_device
def test_thousands_of_small_pieces(device: str) -> None:
    tensors = [random_bytes(1 + i % 37) for i in range(3000)]
    pieces, offset = [], 0
    for i, x in enumerate(tensors):
        pieces.append(Piece(i, (0,), tuple(x.shape), offset))
        offset += x.numel()
    check_pieces(tensors, pieces, offset, device)


def test_pieces_do_not_depend_on_the_turns_of_the_lanes() -> None:
    with lanes_take_turns_backwards():
        check_pieces([random_bytes(70, 1111)], [Piece(0, (0, 1), (70, 1100), 0)], 70 * 1099, "cpu")


def test_gpus_get_the_best_backend_that_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    implementations = {"cuda": print, "reference": repr}
    gpu = torch.device("cuda")
    monkeypatch.setattr(backend, "cuda_architectures", lambda: ("90",))
    assert backend.choose("gae", implementations, gpu) is print
    monkeypatch.setattr(backend, "cuda_architectures", lambda: ())
    assert backend.choose("gae", implementations, gpu) is repr
    with pytest.raises(ValueError, match="backend=cuda: areal_mega._C was built without CUDA kernels"):
        backend.choose("gae", implementations, gpu, "cuda")


def test_tensors_of_the_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match="rewards is on cpu .* expected contiguous memory on cuda"):
        native.cuda("gae_float32", rewards=torch.zeros(3))


@pytest.mark.gpu
@needs_gpu
def test_the_host_waits_for_nothing() -> None:
    inputs = gae_inputs([3000, 20, 5000], "cuda")
    x, buffer = random_bytes(64, 64).cuda(), torch.zeros(64 * 32, dtype=torch.uint8, device="cuda")
    table = PieceTable.build([x], [Piece(0, (0, 32), (64, 64), 0)], buffer.numel()).to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.gae(gamma=0.99, backend="cuda", **inputs)
        ops.pack_pieces([x], table, buffer, backend="cuda")
        ops.unpack_pieces(buffer, table, [x], backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(buffer.view(64, 32), x[:, 32:])


@pytest.mark.gpu
@needs_gpu
def test_gae_runs_on_the_current_stream_and_in_a_graph() -> None:
    inputs = gae_inputs([3000, 20, 5000], "cuda")
    expected = ops.gae(gamma=0.99, backend="cuda", **inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = ops.gae(gamma=0.99, backend="cuda", **inputs)
    for x in actual:
        x.fill_(float("nan"))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.gpu
@needs_gpu
def test_pieces_refuse_a_graph() -> None:
    x, buffer = torch.zeros(8, device="cuda"), torch.zeros(32, dtype=torch.uint8, device="cuda")
    table = PieceTable.build([x], [Piece(0, (0,), (8,), 0)], 32).to("cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="pieces cannot be copied in a CUDA graph"):
        ops.pack_pieces([x], table, buffer, backend="cuda")
