"""The critic's loss: every kernel against loops over tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel, each_device_of, each_kernel_of, kernels_of, on_cpu
from torch import Tensor

from areal_mega import ops
from areal_mega.ops import VALUE_STATISTICS


def loss_and_gradient(values: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    variable = values.detach().requires_grad_()
    loss, statistics = ops.value_loss(variable, *rest, **named)
    return loss.detach(), statistics, torch.autograd.grad(loss, variable)[0]


KERNELS = kernels_of(loss_and_gradient, "reference", "cpp", "triton")
each_kernel = each_kernel_of(KERNELS)
each_clip = pytest.mark.parametrize("clip", [None, 0.2])


def problem(tokens: int, seed: int = 0, valid: float = 0.7) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(tokens, generator=g, dtype=torch.float64)

    old = noise()
    return {
        "values": old + 0.3 * noise(),
        "old_values": old,
        "returns": noise(),
        "loss_mask": torch.rand(tokens, generator=g) < valid,
        "loss_weight": torch.rand(tokens, generator=g, dtype=torch.float64),
    }


def assert_as_defined(kernel: Kernel, inputs: dict[str, Tensor], clip: float | None, rounding: float) -> None:
    x = {k: v.tolist() for k, v in inputs.items()}
    terms, rows, slopes, sizes = [], [], [], []
    for v, old, target, valid, weight in zip(*x.values(), strict=True):
        error, slope, clipped = (v - target) ** 2, v - target, False
        if clip is not None and abs(v - old) > clip:
            bounded = old + math.copysign(clip, v - old) - target
            clipped = bounded**2 > error
            error, slope = (bounded**2, 0.0) if clipped else (error, slope)
        slopes.append(weight * slope if valid else 0.0)
        sizes.append(weight * (abs(v) + abs(target)) if valid else 0.0)
        if valid:
            terms.append(weight * error / 2)
            rows.append((1.0, v, target, (v - target) ** 2, float(clipped), target**2))
    loss, statistics, gradient = kernel(**inputs, clip=clip)
    assert loss.item() == pytest.approx(math.fsum(terms), rel=rounding)
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(VALUE_STATISTICS))
    assert ((statistics - columns.sum(0)).abs() <= rounding * columns.abs().sum(0)).all()
    difference = (gradient.double() - torch.tensor(slopes, dtype=torch.float64)).abs()
    assert (difference <= rounding * torch.tensor(sizes, dtype=torch.float64)).all()


@each_kernel
@each_clip
@pytest.mark.parametrize("tokens", [0, 1, 7, 16, 17, 127, 129, 5000])
def test_equals_the_definition(kernel: Kernel, clip: float | None, tokens: int) -> None:
    assert_as_defined(kernel, problem(tokens), clip, 1e-12)


@each_device_of(KERNELS)
@settings(max_examples=60)
@given(
    tokens=st.integers(0, 200),
    seed=st.integers(0, 2**31),
    valid=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    clip=st.sampled_from([None, 1e-3, 0.2, 5.0]),
)
def test_every_kernel_agrees_on_any_batch(kernels, tokens, seed, valid, clip) -> None:
    for kernel in kernels.values():
        assert_as_defined(kernel, problem(tokens, seed, valid), clip, 1e-11)


@each_kernel
@each_clip
def test_float32_keeps_its_digits(kernel: Kernel, clip: float | None) -> None:
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in problem(3000).items()}
    assert_as_defined(kernel, inputs, clip, 2e-6)


@each_kernel
@each_clip
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_masked_tokens_are_never_read(kernel: Kernel, clip: float | None, poison: float) -> None:
    inputs = problem(150)
    mask = inputs["loss_mask"]
    spoilt = {k: torch.where(mask, v, poison) if v.is_floating_point() else v for k, v in inputs.items()}
    results = kernel(**spoilt, clip=clip)
    for a, b in zip(results, kernel(**inputs, clip=clip), strict=True):
        assert torch.equal(a, b)
    assert results[2][~mask].eq(0).all()


@each_kernel
def test_a_change_exactly_at_the_clip_is_not_clipped(kernel: Kernel) -> None:
    """And beyond it is, but only where that makes the error larger."""
    one = {k: v[:1] for k, v in problem(1).items()}
    token = {**one, "loss_mask": torch.ones(1, dtype=torch.bool), "loss_weight": torch.ones(1).double()}
    for value, target, gradient in ((0.5, 2.0, -1.5), (0.75, 2.0, 0.0), (0.75, -2.0, 2.75)):
        numbers = {"values": value, "old_values": 0.0, "returns": target}
        inputs = token | {k: torch.tensor([v], dtype=torch.float64) for k, v in numbers.items()}
        _, statistics, grad = kernel(**inputs, clip=0.5)
        assert grad.item() == gradient
        assert statistics[VALUE_STATISTICS.index("clipped")] == (gradient == 0)


@each_clip
def test_threads_and_layout_change_nothing(clip: float | None) -> None:
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in problem(100_000).items()}
    strided = {k: torch.stack([v, v], dim=1)[:, 0] for k, v in inputs.items()}
    before = torch.get_num_threads()
    try:
        results = []
        for threads, arguments in ((1, inputs), (2, strided), (5, inputs)):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(**arguments, clip=clip, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


MISTAKES = {
    "values": ({"values": torch.zeros(5, dtype=torch.float16)}, "values is torch.float16"),
    "old_values": ({"old_values": torch.zeros(4)}, r"old_values .* shape \[4\].*expected .* shape \[5\]"),
    "mask": ({"loss_mask": torch.zeros(5)}, "loss_mask is torch.float32.*expected torch.bool"),
    "clip": ({"clip": 0.0}, "clip is 0.0: expected a number above 0, or None"),
    "backend": ({"backend": "cuda"}, "backend=cuda: value_loss has no such backend"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change: dict, message: str) -> None:
    right = {**dict.fromkeys(("values", "old_values", "returns", "loss_weight"), torch.zeros(5)), "clip": 0.2}
    with pytest.raises(ValueError, match=message):
        ops.value_loss(**{**right, "loss_mask": torch.ones(5, dtype=torch.bool), **change})


@pytest.mark.parametrize("backend", on_cpu("cpp", "triton", "reference"))
def test_torch_accepts_and_compiles_the_operator(backend: str) -> None:
    inputs = problem(8)
    variable = inputs["values"].requires_grad_()
    torch.library.opcheck(torch.ops.areal_mega.value_loss.default, (*inputs.values(), 0.2, backend))
    assert torch.autograd.gradcheck(
        lambda v: ops.value_loss(**{**inputs, "values": v}, clip=0.2, backend=backend)[0], variable
    )
    compiled = torch.compile(ops.value_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    expected, actual = (f(**inputs, clip=0.2, backend=backend)[0] for f in (ops.value_loss, compiled))
    assert torch.equal(torch.autograd.grad(expected, variable)[0], torch.autograd.grad(actual, variable)[0])
