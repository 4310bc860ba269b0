"""The fused policy loss against its two steps, which have their own oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import affordable, each_kernel_of, kernels_of
from products import allocations, products
from torch import Tensor

from areal_mega import ops
from areal_mega.ops import PolicyLossOptions
from areal_mega.ops.reference.linear import linear_logprob as by_definition

KERNELS = kernels_of(ops.linear_policy_loss, "reference", "cpp", "triton")
each_kernel = each_kernel_of(KERNELS)

EVERYTHING = PolicyLossOptions(
    clip_high=0.28, dual_clip=3.0, behavior="token", behavior_high=1.2, kl_coef=0.1, entropy_coef=0.02
)
VARIANTS = (
    PolicyLossOptions(),
    EVERYTHING,
    PolicyLossOptions(objective="cispo", entropy_coef=0.1),
    PolicyLossOptions(behavior="token", behavior_mode="mask", behavior_low=0.8, behavior_high=1.2, kl_estimator="k1"),
)


def problem(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    """Some tokens are masked, some ignored; the ratios are clipped on both sides."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=g, dtype=torch.float64).to(dtype)
    weight = (torch.randn(vocabulary, width, generator=g, dtype=torch.float64) * (2 / width**0.5)).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=g)
    current = by_definition(hidden.double(), weight.double(), targets, 1.0)[0]
    targets[torch.rand(tokens, generator=g) < 0.1] = -1
    noise = 0.2 * torch.randn(3, tokens, generator=g, dtype=torch.float64)
    numbers = {
        "advantages": torch.randn(tokens, generator=g),
        "proximal_logprobs": current + noise[0],
        "loss_weight": torch.rand(tokens, generator=g) / max(tokens, 1),
        "behavior_logprobs": current + noise[0] + noise[1],
        "reference_logprobs": current + noise[2],
    }
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "hidden": hidden.requires_grad_(),
        "weight": weight.requires_grad_(),
        "targets": targets,
        "loss_mask": torch.rand(tokens, generator=g) < 0.8,
        **{name: x.to(wide) for name, x in numbers.items()},
    }


def in_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    exact = {name: x.detach().double() if x.is_floating_point() else x for name, x in inputs.items()}
    return {name: x.requires_grad_(name in ("hidden", "weight")) for name, x in exact.items()}


def two_steps(inputs: dict[str, Any], options: PolicyLossOptions, backend: str = "", **head: Any) -> tuple[Tensor, ...]:
    rest = dict(inputs)
    hidden, weight, targets = (rest.pop(name) for name in ("hidden", "weight", "targets"))
    logprobs, entropy = ops.linear_logprob(hidden, weight, targets, backend=backend, **head)
    rest["loss_mask"] = rest["loss_mask"] & (targets >= 0)
    loss, statistics = ops.policy_loss(logprobs, entropy, options=options, **rest)
    return loss, statistics, logprobs, entropy


def gradients(loss: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (inputs["hidden"], inputs["weight"]))


def assert_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    """Relative to the largest number of each tensor, and to 1."""
    for a, e in zip(actual, expected, strict=True):
        largest = max(1.0, float(e.detach().abs().max())) if e.numel() else 1.0
        torch.testing.assert_close(a.detach().double(), e.detach().double(), rtol=0, atol=tolerance * largest)


@each_kernel
@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("workspace", [None, 1, 9000])
def test_equals_the_two_steps(kernel, options: PolicyLossOptions, workspace: int | None) -> None:
    inputs = problem(37, 9, 130)
    expected = two_steps(inputs, options, "reference", temperature=0.8)
    size = workspace and affordable(kernel, workspace, interpreted=9000)
    actual = kernel(options=options, temperature=0.8, workspace_bytes=size, **inputs)
    assert [x.requires_grad for x in actual] == [True, False, False, False]
    assert_close(actual, expected, 1e-12)
    assert_close(gradients(actual[0], inputs), gradients(expected[0], inputs), 1e-12)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(0, 25),
    width=st.integers(1, 12),
    vocabulary=st.integers(1, 100),
    workspace=st.integers(1, 20_000),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_however_it_is_cut(tokens, width, vocabulary, workspace, dtype, seed) -> None:
    inputs = problem(tokens, width, vocabulary, dtype, seed)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    exact = in_double(inputs)
    # In float32 a token may fall on the other side of a bound, so those that decide are not compared there.
    options = EVERYTHING if dtype == torch.float64 else PolicyLossOptions(clip_low=1.0, clip_high=1e6, entropy_coef=0.1)
    expected = two_steps(exact, options, "reference")
    actual = ops.linear_policy_loss(options=options, workspace_bytes=workspace, **inputs)
    assert_close((actual[0], *actual[2:]), (expected[0], *expected[2:]), tolerance)
    assert_close(gradients(actual[0], inputs), gradients(expected[0], exact), tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("workspace", [None, 9000])
def test_sixteen_bits(dtype: torch.dtype, workspace: int | None) -> None:
    inputs = problem(64, 32, 700, dtype)
    expected = two_steps(inputs, EVERYTHING)
    actual = ops.linear_policy_loss(options=EVERYTHING, workspace_bytes=workspace, **inputs)
    assert_close(actual, expected, 1e-6)
    for a, e in zip(gradients(actual[0], inputs), gradients(expected[0], inputs), strict=True):
        assert a.dtype == dtype
        assert (a.double() - e.double()).norm() < 4 * torch.finfo(dtype).eps * e.double().norm()


def test_the_gradient_that_reaches_the_loss_scales_both() -> None:
    inputs = problem(20, 6, 50)
    expected = gradients(-3 * two_steps(inputs, EVERYTHING)[0], inputs)
    assert_close(gradients(-3 * ops.linear_policy_loss(options=EVERYTHING, **inputs)[0], inputs), expected, 1e-13)
    scaled = ops.linear_policy_loss(options=EVERYTHING, loss_scale=1024.0, **inputs)[0]
    assert_close(gradients(-3 * scaled, inputs), expected, 1e-13)


def test_a_loss_scale_saves_small_gradients_in_float16() -> None:
    inputs = problem(40, 8, 2000, torch.float16)
    inputs["loss_weight"] *= 1e-4
    exact = in_double(inputs)
    expected = gradients(two_steps(exact, EVERYTHING)[0] * 2**16, exact)
    loss = ops.linear_policy_loss(options=EVERYTHING, loss_scale=2.0**16, **inputs)[0]
    for a, e in zip(gradients(loss * 2**16, inputs), expected, strict=True):
        assert (a.double() - e).norm() < 0.02 * e.norm()


def test_main_grad_is_added_to_once_and_for_one_scale_only() -> None:
    inputs = problem(20, 6, 50, torch.float32)
    of_hidden, of_weight = gradients(two_steps(inputs, EVERYTHING)[0], inputs)
    main_grad = torch.ones_like(of_weight)
    call = {"options": EVERYTHING, "main_grad": main_grad, "workspace_bytes": 2000, **inputs}
    with torch.no_grad():
        ops.linear_policy_loss(**call)
    assert main_grad.eq(1).all()
    loss = ops.linear_policy_loss(loss_scale=4.0, **call)[0]
    (loss * 4).backward()
    assert inputs["weight"].grad is None
    assert_close((inputs["hidden"].grad, main_grad), (4 * of_hidden, 1 + 4 * of_weight), 1e-6)
    with pytest.raises(RuntimeError, match=r"main_grad for another gradient.*is 2\.0, loss_scale is 4\.0"):
        (ops.linear_policy_loss(loss_scale=4.0, **call)[0] * 2).backward()


def test_backward_runs_once() -> None:
    inputs = problem(5, 4, 9)
    loss = ops.linear_policy_loss(options=EVERYTHING, **inputs)[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it again for a second backward"):
        loss.backward()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient(frozen: str) -> None:
    inputs = problem(20, 6, 50)
    other = {"hidden": "weight", "weight": "hidden"}[frozen]
    (expected,) = torch.autograd.grad(two_steps(inputs, EVERYTHING)[0], inputs[other])
    inputs[frozen] = inputs[frozen].detach()
    (actual,) = torch.autograd.grad(ops.linear_policy_loss(options=EVERYTHING, **inputs)[0], inputs[other])
    assert_close((actual,), (expected,), 1e-13)


def test_three_products_instead_of_four() -> None:
    inputs = problem(64, 32, 5000, torch.float32)
    one = 64 * 32 * 5000
    with products() as work:
        gradients(ops.linear_policy_loss(options=EVERYTHING, workspace_bytes=10**6, **inputs)[0], inputs)
    assert work.multiplications == 3 * one
    with products() as work:
        gradients(two_steps(inputs, EVERYTHING, workspace_bytes=10**5)[0], inputs)
    assert work.multiplications == 4 * one


@pytest.mark.parametrize(("tokens", "width", "workspace"), [(256, 64, 4 * 2**20), (64, 256, 2**20)])
def test_memory_is_that_of_the_workspace(tokens: int, width: int, workspace: int) -> None:
    vocabulary = 40_000
    inputs = problem(tokens, width, vocabulary, torch.float32)
    with allocations() as memory:
        ops.linear_policy_loss(options=EVERYTHING, workspace_bytes=workspace, **inputs)[0].backward()
    assert memory.peak < 4 * width * (tokens + vocabulary) + 1.5 * workspace
    assert workspace < 4 * tokens * vocabulary / 9


def test_by_default_logits_are_held_where_they_are_smaller_than_the_gradient() -> None:
    tokens, width, vocabulary = 60, 100, 40_000
    inputs = problem(tokens, width, vocabulary, torch.float32)
    with allocations() as memory:
        ops.linear_policy_loss(options=EVERYTHING, **inputs)[0].backward()
    assert 4 * tokens * vocabulary < memory.peak - 4 * width * vocabulary < 4 * 1.2 * tokens * vocabulary


def test_runs_repeat_bitwise() -> None:
    inputs = problem(100, 32, 5000, torch.float32)
    runs = []
    for _ in range(2):
        outputs = ops.linear_policy_loss(options=EVERYTHING, workspace_bytes=10**5, **inputs)
        runs.append((*outputs, *gradients(outputs[0], inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


MISTAKES = {
    "ratio": ({"options": PolicyLossOptions(ratio="sequence")}, "ratio 'sequence'.*linear_logprob, then policy_loss"),
    "behavior": ({"options": PolicyLossOptions(behavior="sequence-mean")}, "behavior 'sequence-mean'"),
    "loss_scale": ({"loss_scale": 0.0}, "loss_scale is 0.0: expected a number above 0"),
    "weight": ({"weight": torch.zeros(9, 5)}, r"weight .* shape \[9, 5\]"),
    "advantages": ({"advantages": torch.zeros(4)}, "advantages"),
    "reference": ({"reference_logprobs": None}, "reference_logprobs is None"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change: dict, message: str) -> None:
    right = {"options": EVERYTHING, **problem(5, 4, 9, torch.float32)}
    with pytest.raises(ValueError, match=message):
        ops.linear_policy_loss(**{**right, **change})


@pytest.mark.parametrize("with_main_grad", [False, True])
def test_compiles_into_one_graph_with_its_backward(with_main_grad: bool) -> None:
    compiled = torch.compile(ops.linear_policy_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (6, 9):
        results = []
        for kernel in (ops.linear_policy_loss, compiled):
            inputs = problem(tokens, 4, 30, torch.float32)
            main_grad = torch.zeros(30, 4) if with_main_grad else None
            outputs = kernel(options=EVERYTHING, main_grad=main_grad, **inputs)
            outputs[0].backward()
            of_weight = inputs["weight"].grad if main_grad is None else main_grad
            results.append((*(x.detach() for x in outputs), inputs["hidden"].grad, of_weight))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
