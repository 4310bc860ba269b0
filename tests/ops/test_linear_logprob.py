"""Log-probs through the output layer: every backend against the definition in float64, cut in any way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel, affordable, each_device_of, each_kernel_of, kernels_of
from products import allocations
from torch import Tensor

from areal_mega import ops
from areal_mega.ops.gemm import add_product_, product
from areal_mega.ops.reference.linear import linear_logprob as by_definition

KERNELS = kernels_of(ops.linear_logprob, "reference", "cpp", "triton")
each_kernel = each_kernel_of(KERNELS)
WORKER = Path(__file__).with_name("linear_worker.py")


def problem(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64, ignored: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """hidden, weight, targets, and gradients of log-prob and entropy. The logits are of size 1 to 5."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=g, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=g, dtype=torch.float64) * (2 / width**0.5)
    targets = torch.randint(0, vocabulary, (tokens,), generator=g)
    targets[torch.rand(tokens, generator=g) < ignored] = -100
    upstream = (torch.randn(tokens, generator=g), 0.3 * torch.randn(tokens, generator=g))
    number = torch.promote_types(dtype, torch.float32)
    hidden, weight = (x.to(dtype).requires_grad_() for x in (hidden, weight))
    return hidden, weight, targets, (upstream[0].to(number), upstream[1].to(number))


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: tuple[Tensor, Tensor], **rest) -> list[Tensor]:
    """Outputs and gradients of the definition in float64."""
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    outputs = by_definition(h, w, targets, **{"temperature": 1.0, **rest})
    return [*outputs, *torch.autograd.grad(outputs, (h, w), [u.double() for u in upstream])]


def computed(kernel: Kernel, hidden: Tensor, weight: Tensor, targets: Tensor, upstream, **rest) -> list[Tensor]:
    outputs = kernel(hidden, weight, targets, **rest)
    return [*outputs, *torch.autograd.grad(outputs, (hidden, weight), upstream)]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to the largest number of each tensor, and to 1: the terms of these sums are of that size."""
    for a, e in zip(actual, expected, strict=True):
        largest = max(1.0, float(e.detach().abs().max())) if e.numel() else 1.0
        torch.testing.assert_close(a.detach().double(), e.detach(), rtol=0, atol=tolerance * largest)


@each_kernel
@pytest.mark.parametrize(
    ("tokens", "width", "vocabulary"),
    [(0, 8, 5), (1, 1, 1), (7, 63, 2), (129, 129, 127), (128, 64, 1025), (3, 127, 8195), (2, 896, 255)],
)
def test_equals_the_definition(kernel: Kernel, tokens: int, width: int, vocabulary: int) -> None:
    tokens = affordable(kernel, tokens, interpreted=min(tokens, 10))
    inputs = problem(tokens, width, vocabulary, ignored=0.1)
    assert_close(computed(kernel, *inputs, temperature=0.7), exact(*inputs, temperature=0.7), 1e-12)
    inputs = problem(tokens, width, vocabulary, torch.float32, ignored=0.1)
    assert_close(computed(kernel, *inputs), exact(*inputs), 1e-5)


@each_device_of(KERNELS)
@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(0, 25),
    width=st.integers(1, 12),
    vocabulary=st.integers(1, 100),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.floats(0.3, 3),
    workspace=st.integers(400, 20_000),
    seed=st.integers(0, 2**31),
)
def test_every_kernel_agrees_however_it_is_cut(
    kernels, tokens, width, vocabulary, ignored, temperature, workspace, seed
) -> None:
    inputs = problem(tokens, width, vocabulary, ignored=ignored, seed=seed)
    expected = exact(*inputs, temperature=temperature)
    for kernel in kernels.values():
        size = affordable(kernel, workspace, interpreted=max(workspace, 8000))
        assert_close(computed(kernel, *inputs, temperature=temperature, workspace_bytes=size), expected, 1e-11)


def test_gradients_by_finite_differences() -> None:
    hidden, weight, targets, _ = problem(5, 4, 9, ignored=0.2)
    assert torch.autograd.gradcheck(
        lambda h, w: ops.linear_logprob(h, w, targets, temperature=0.7, workspace_bytes=200), (hidden, weight)
    )


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(used: int) -> None:
    hidden, weight, targets, upstream = problem(7, 5, 11)
    alone = torch.autograd.grad(ops.linear_logprob(hidden, weight, targets)[used], (hidden, weight), upstream[used])
    others = [u * (i == used) for i, u in enumerate(upstream)]
    assert_close(list(alone), exact(hidden, weight, targets, (others[0], others[1]))[2:], 1e-12)


def test_logits_that_overflow_exp() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[500.0], [490.0]])
    logprob, entropy = ops.linear_logprob(hidden, weight, torch.tensor([1]))
    assert logprob.item() == pytest.approx(-10.0000454, abs=1e-5)
    assert entropy.item() == pytest.approx(4.99377e-4, abs=1e-6)


@each_kernel
def test_padding_is_never_read_and_ignored_tokens_do_nothing(kernel: Kernel) -> None:
    hidden, weight, targets, upstream = problem(20, 6, 50)
    targets = targets % 41
    targets[3], targets[8] = -1, -100
    inputs = hidden, weight, targets, upstream
    expected = exact(*inputs, vocab_size=41)
    with torch.no_grad():
        weight[41:] = float("nan")
    actual = computed(kernel, *inputs, vocab_size=41, workspace_bytes=2000)
    assert_close(actual, expected, 1e-12)
    assert not actual[3][41:].any()
    for ignored in (3, 8):
        assert all(x[ignored].eq(0).all() for x in actual[:3])
    whole = ops.linear_logprob(hidden, weight, targets.int(), vocab_size=41)
    assert torch.equal(whole[0], ops.linear_logprob(hidden, weight[:41], targets)[0])


@pytest.mark.parametrize("needed", [0, 1])
def test_a_frozen_input_costs_no_product(needed: int) -> None:
    inputs = problem(64, 32, 3000, torch.float32)
    tensors = [x.detach().requires_grad_(i == needed) for i, x in enumerate(inputs[:2])]
    logprob = ops.linear_logprob(*tensors, inputs[2])[0]
    with torch.profiler.profile() as profile:
        (gradient,) = torch.autograd.grad(logprob, tensors[needed], inputs[3][0])
    names = [e.name for e in profile.events()]
    products = sum(names.count(name) for name in ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"))
    assert products == 2  # the logits again, and the one gradient
    assert_close([gradient], [exact(*inputs[:3], (inputs[3][0], torch.zeros(64)))[2 + needed]], 1e-5)


def rounded_once(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The best gradients there are with logits and their gradients in bfloat16."""
    z = (hidden.double() @ weight.double().t()).bfloat16().double().detach().requires_grad_()
    log_p = z.log_softmax(-1)
    outputs = log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    (dz,) = torch.autograd.grad(outputs, z, [u.double() for u in upstream])
    dz = dz.bfloat16().double()
    return [x.detach() for x in ((dz @ weight.double()).bfloat16(), (dz.t() @ hidden.double()).bfloat16())]


@pytest.mark.parametrize("workspace", [None, 64 * 2048, 20_000], ids=["whole", "16 parts", "many"])
def test_bfloat16_gradients_are_as_good_as_one_rounding_allows(workspace: int | None) -> None:
    inputs = problem(128, 64, 16 * 1024, torch.bfloat16)
    expected = exact(*inputs)[2:]
    actual = computed(ops.linear_logprob, *inputs, workspace_bytes=workspace)[2:]
    # The CPU has no product of 16-bit matrices in float32: the parts of the hidden gradient are rounded as well, which
    # is one more rounding however many parts there are.
    for a, best, e, most in zip(actual, rounded_once(*inputs), expected, (1.4, 1.2), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - e).norm() <= most * (best.double() - e).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_main_grad_collects_micro_batches_unrounded(dtype: torch.dtype) -> None:
    weight = problem(0, 24, 500, dtype)[1]
    main_grad, expected = torch.zeros(500, 24), torch.zeros(500, 24, dtype=torch.float64)
    for seed in range(8):
        hidden, _, targets, upstream = problem(40, 24, 500, dtype, seed=seed)
        outputs = ops.linear_logprob(hidden, weight, targets, main_grad=main_grad, workspace_bytes=20_000)
        torch.autograd.backward(outputs, upstream)
        expected += exact(hidden, weight, targets, upstream)[3]
        assert hidden.grad is not None
    assert weight.grad is None
    error = (main_grad - expected).norm() / expected.norm()
    assert error < {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float32: 1e-6}[dtype]


def test_runs_repeat_bitwise_and_rows_do_not_mind_their_company() -> None:
    hidden, weight, targets, upstream = problem(129, 64, 5000, torch.float32)
    first = computed(ops.linear_logprob, hidden, weight, targets, upstream)
    again = computed(ops.linear_logprob, hidden, weight, targets, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    order = torch.randperm(129, generator=torch.Generator().manual_seed(1))
    shuffled = ops.linear_logprob(hidden[order], weight, targets[order])
    assert_close(list(shuffled), [x[order].double() for x in first[:2]], 1e-6)


def test_memory_is_that_of_the_workspace() -> None:
    tokens, width, vocabulary = 256, 64, 40_000
    inputs = problem(tokens, width, vocabulary, torch.float32)
    workspace = 2**20
    with allocations() as memory:
        outputs = ops.linear_logprob(*inputs[:3], workspace_bytes=workspace)
    assert memory.peak < 1.5 * workspace
    with allocations() as memory:
        torch.autograd.grad(outputs, inputs[:2], inputs[3])
    gradients = 4 * width * (tokens + vocabulary)
    assert memory.peak < gradients + 1.5 * workspace
    assert workspace < 4 * tokens * vocabulary / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("m", "k", "n"), [(3, 70, 5), (70, 3, 50), (1, 1, 1), (0, 4, 4), (4, 0, 4), (33, 65, 1)])
def test_products(dtype: torch.dtype, m: int, k: int, n: int) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(m, k, generator=g).to(dtype), torch.randn(n, k, generator=g).to(dtype).t()
    expected = a.double() @ b.double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(product(a, b).double(), expected, rtol=0, atol=tolerance)
    total = torch.ones(m, n, dtype=torch.promote_types(dtype, torch.float32))
    add_product_(total, a, b)
    torch.testing.assert_close(total.double(), 1 + expected, rtol=0, atol=tolerance)


MISTAKES = {
    "hidden": ({"hidden": torch.zeros(3)}, r"hidden .* shape \[3\].*expected .* shape \[T, H\]"),
    "dtype": ({"hidden": torch.zeros(3, 4).int()}, "hidden is torch.int32"),
    "weight": ({"weight": torch.zeros(9, 5)}, r"weight .* shape \[9, 5\].*expected .* shape \[9, 4\]"),
    "weight_dtype": ({"weight": torch.zeros(9, 4).double()}, "weight is torch.float64"),
    "targets": ({"targets": torch.zeros(2).long()}, r"targets .* shape \[2\].*expected .* shape \[3\]"),
    "targets_dtype": ({"targets": torch.zeros(3)}, "targets is torch.float32: expected int32 or int64"),
    "target": ({"targets": torch.tensor([0, 9, 1])}, "targets has the id 9: expected ids below 9"),
    "padding": ({"vocab_size": 5, "targets": torch.tensor([0, 5, 1])}, "targets has the id 5: expected ids below 5"),
    "temperature": ({"temperature": 0.0}, "temperature is 0.0: expected a number above 0"),
    "workspace": ({"workspace_bytes": 0}, "workspace_bytes is 0"),
    "main_grad": ({"main_grad": torch.zeros(9, 4).double()}, "main_grad is torch.float64.*expected torch.float32"),
    "backend": ({"backend": "fpga"}, "backend=fpga is not a backend"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change: dict, message: str) -> None:
    right = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(9, 4), "targets": torch.zeros(3).long()}
    with pytest.raises(ValueError, match=message):
        ops.linear_logprob(**{**right, **change})


def test_torch_accepts_the_operator() -> None:
    hidden, weight, targets, _ = problem(6, 4, 30, ignored=0.2)
    settings = (0.7, 0, 30, "", False, 500, "")
    torch.library.opcheck(torch.ops.areal_mega.linear_logprob.default, (hidden, weight, targets, None, *settings))


def test_compiles_into_one_graph_with_its_backward() -> None:
    compiled = torch.compile(ops.linear_logprob, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (6, 9):
        hidden, weight, targets, upstream = problem(tokens, 4, 30, torch.float32)
        main_grads = torch.zeros(2, 30, 4)
        for kernel, main_grad in zip((ops.linear_logprob, compiled), main_grads, strict=True):
            torch.autograd.backward(kernel(hidden, weight, targets, main_grad=main_grad), upstream)
        assert main_grads.any()
        assert torch.equal(*main_grads)
        inputs = hidden, weight, targets, upstream
        for a, b in zip(computed(compiled, *inputs), computed(ops.linear_logprob, *inputs), strict=True):
            assert torch.equal(a, b)


@pytest.mark.distributed
def test_ranks_compute_what_one_does(tmp_path: Path) -> None:
    """Both fused operations, on 2 and on 3 of 3 ranks: sharded vocabulary, with and without sequence parallelism."""
    launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    out = tmp_path / "deviations.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launch, str(WORKER), str(out)], env=environment, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr[-6000:]
    measured = json.loads(out.read_text())
    assert len(measured) == 2 * 2 * 2 * 2
    assert {name: worst for name, worst in measured.items() if not worst < 1e-11} == {}
