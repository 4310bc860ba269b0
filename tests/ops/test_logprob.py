"""Log-probs from logits: what autograd sees of them, against autograd in float64."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel, each_device_of, each_kernel_of, kernels_of, on_cpu
from ops.logit_rows_oracle import DTYPES, assert_within, expected
from torch import Tensor

from areal_mega import ops


def with_gradient(
    logits: Tensor, targets: Tensor, g: Tensor, h: Tensor, backend: str = "", **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob, entropy, and the gradient of sum(g logprob + h entropy); ``logits`` stay as they are."""
    own = logits.detach().clone().requires_grad_() if logits.is_contiguous() else logits.detach().requires_grad_()
    logprob, entropy = ops.logprob_from_logits(own * 1, targets, backend=backend, **options)
    (grad,) = torch.autograd.grad((g * logprob + h * entropy).sum(), own)
    return logprob.detach(), entropy.detach(), grad


KERNELS = kernels_of(with_gradient, "reference", "cpp", "triton")
each_kernel = each_kernel_of(KERNELS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def problem(rows: int, width: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g, h = torch.randn(2, rows, generator=generator).to(torch.promote_types(dtype, torch.float32))
    logits = (torch.randn(rows, width, generator=generator) * 3).to(dtype)
    return {"logits": logits, "targets": torch.randint(0, width, (rows,), generator=generator), "g": g, "h": h}


@each_device_of(KERNELS)
@settings(max_examples=60)
@given(
    rows=st.integers(0, 5),
    width=st.integers(1, 60) | st.integers(2040, 2060),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 5.0]),
    inplace=st.booleans(),
    as_int32=st.booleans(),
)
def test_equals_autograd(kernels, rows, width, dtype, seed, temperature, inplace, as_int32) -> None:
    inputs = problem(rows, width, dtype, seed)
    exact = expected(temperature=temperature, **inputs)
    if as_int32:
        inputs["targets"] = inputs["targets"].int()
    for kernel in kernels.values():
        logprob, entropy, grad = kernel(temperature=temperature, inplace_backward=inplace, **inputs)
        assert logprob.dtype == entropy.dtype == inputs["g"].dtype and grad.dtype == dtype
        assert_within(logprob, exact.logprob, exact.logprob_error)
        assert_within(entropy, exact.entropy, exact.entropy_error)
        assert_within(grad, exact.grad, exact.grad_error)


@each_kernel
@each_dtype
def test_in_place_backward_is_the_same_bit_for_bit(kernel: Kernel, dtype: torch.dtype) -> None:
    inputs = problem(7, 2100, dtype)
    for a, b in zip(kernel(**inputs), kernel(inplace_backward=True, **inputs), strict=True):
        assert torch.equal(a, b)


@each_kernel
@pytest.mark.parametrize("inplace", [False, True])
def test_ignored_targets(kernel: Kernel, inplace: bool) -> None:
    """They give 0 and leave the others alone, whatever their logits and upstream gradients are."""
    inputs = problem(6, 100, torch.float32)
    clean = kernel(**inputs)
    ignored = torch.tensor([0, 3, 5])
    inputs["targets"][ignored] = torch.tensor([-1, -100, -(2**40)])
    inputs["logits"][ignored[:2]] = torch.nan
    inputs["g"][3] = torch.nan
    for before, after in zip(clean, kernel(inplace_backward=inplace, **inputs), strict=True):
        assert after[ignored].eq(0).all()
        assert torch.equal(before[[1, 2, 4]], after[[1, 2, 4]])


@each_kernel
def test_every_row_ignored(kernel: Kernel) -> None:
    inputs = problem(3, 10, torch.bfloat16)
    inputs["targets"][:] = -100
    assert all(x.eq(0).all() for x in kernel(**inputs))


@each_kernel
def test_a_padded_vocabulary_is_cut(kernel: Kernel) -> None:
    inputs = problem(5, 128, torch.float32)
    inputs["targets"] %= 100
    inputs["targets"][0] = 99
    padded = {**inputs, "logits": inputs["logits"].clone()}
    padded["logits"][:, 100:] = torch.nan
    alone = kernel(**{**inputs, "logits": inputs["logits"][:, :100].clone()})
    logprob, entropy, grad = kernel(vocab_size=100, **padded)
    assert torch.equal(logprob, alone[0]) and torch.equal(entropy, alone[1])
    assert torch.equal(grad[:, :100], alone[2]) and grad[:, 100:].eq(0).all()


@each_kernel
def test_a_kept_set_of_tokens(kernel: Kernel) -> None:
    """Logits masked to the top 50: the probabilities of those sum to 1, and a target may be outside."""
    inputs = problem(4, 1000, torch.float32)
    top = inputs["logits"].topk(50).indices
    kept = torch.zeros(4, 1000, dtype=torch.bool).scatter_(1, top, True)
    inputs["targets"] = torch.stack([top[0, 0], top[1, 49], (~kept[2]).nonzero()[0, 0], top[3, 7]])
    inputs["logits"][~kept] = -torch.inf
    inputs["logits"][3, kept[3] & (torch.arange(1000) != top[3, 7])] = -torch.inf
    logprob, entropy, grad = kernel(**inputs)
    among = torch.stack([inputs["logits"][i, top[i]] for i in range(4)]).double().log_softmax(1)
    torch.testing.assert_close(logprob[:2].double(), among[[0, 1], [0, 49]], rtol=1e-6, atol=1e-6)
    assert logprob[2] == -torch.inf and logprob[3] == 0 and entropy[3] == 0
    assert grad[3].eq(0).all() and grad.isfinite().all()


@pytest.mark.parametrize("backend", on_cpu("cpp", "triton", "reference"))
@pytest.mark.parametrize("wanted", ["logprob", "entropy", "both"])
def test_gradcheck(backend: str, wanted: str) -> None:
    logits = torch.randn(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def function(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        both = ops.logprob_from_logits(x, torch.tensor([0, 10, -1, 4]), temperature=0.7, vocab_size=11, backend=backend)
        return {"logprob": both[0], "entropy": both[1], "both": both}[wanted]

    assert torch.autograd.gradcheck(function, (logits,))


def test_strided_logits_and_targets() -> None:
    inputs = problem(6, 50, torch.float32)
    plain = ops.logprob_from_logits(inputs["logits"], inputs["targets"])
    columns_first = inputs["logits"].t().contiguous().t()
    wide = torch.zeros(6, 80)[:, 7:57].copy_(inputs["logits"])
    every_other = torch.stack([inputs["targets"]] * 2, dim=1)[:, 1]
    for logits in (columns_first, wide):
        assert torch.equal(torch.stack(ops.logprob_from_logits(logits, every_other)), torch.stack(plain))


def test_backward_again_and_of_one_output_only() -> None:
    inputs = problem(5, 40, torch.float32)
    logits = inputs["logits"].requires_grad_()
    logprob, entropy = ops.logprob_from_logits(logits, inputs["targets"])
    (first,) = torch.autograd.grad(logprob.sum(), logits, retain_graph=True)
    (again,) = torch.autograd.grad(logprob.sum(), logits, retain_graph=True)
    (of_entropy,) = torch.autograd.grad(entropy.sum(), logits, retain_graph=True)
    (of_both,) = torch.autograd.grad((logprob + entropy).sum(), logits)
    assert torch.equal(first, again)
    torch.testing.assert_close(of_both, first + of_entropy, rtol=1e-5, atol=1e-6)


def test_there_is_no_second_derivative() -> None:
    inputs = problem(2, 9, torch.float32)
    logits = inputs["logits"].requires_grad_()
    logprob, _ = ops.logprob_from_logits(logits, inputs["targets"])
    (grad,) = torch.autograd.grad(logprob.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.square().sum().backward()


def test_extra_memory_does_not_grow_with_the_vocabulary() -> None:
    """Saved for backward: logits and rows of numbers. Forward and in-place backward allocate nothing larger."""
    inputs = problem(64, 20000, torch.bfloat16)
    saved: list[Tensor] = []
    logits = inputs["logits"].requires_grad_() * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x), x)[1], lambda x: x):
        ops.logprob_from_logits(logits, inputs["targets"], inplace_backward=True)
    assert {x.data_ptr() for x in saved if x.numel() > 64} == {logits.data_ptr()}

    def forward_and_backward() -> Tensor:
        logprob, entropy = ops.logprob_from_logits(logits, inputs["targets"], inplace_backward=True)
        return torch.autograd.grad((logprob + entropy).sum(), logits)[0]

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        grad = forward_and_backward()
    assert 0 < max(event.self_cpu_memory_usage for event in profile.events()) <= 4 * 64 * 4
    assert grad.data_ptr() == logits.data_ptr()


def test_in_place_backward_is_refused_or_seen_where_it_would_do_harm() -> None:
    inputs = problem(3, 8, torch.float32)
    leaf = inputs["logits"].requires_grad_()
    for logits, message in (
        (leaf, "a leaf that requires grad"),
        (leaf.view(3, 8), "a view of a leaf that requires grad"),
        (leaf.t().contiguous().t(), "contiguous and apart"),
        ((leaf[:1] * 2).expand(3, 8), "contiguous and apart"),
    ):
        with pytest.raises(ValueError, match=f"inplace_backward .*{message}.*leave inplace_backward off"):
            ops.logprob_from_logits(logits, inputs["targets"], inplace_backward=True)

    logits = leaf.exp()  # whose backward needs its result
    logprob, _ = ops.logprob_from_logits(logits, inputs["targets"], inplace_backward=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprob.sum().backward()

    logits = leaf * 2
    logprob, _ = ops.logprob_from_logits(logits, inputs["targets"], inplace_backward=True)
    logprob.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprob.sum().backward()


def test_without_gradients() -> None:
    inputs = problem(3, 8, torch.float32)
    before = inputs["logits"].clone()
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu")):
        with context:
            logprob, _ = ops.logprob_from_logits(inputs["logits"], inputs["targets"], inplace_backward=True)
        assert logprob.dtype == torch.float32 and not logprob.requires_grad
    assert torch.equal(inputs["logits"], before)


def test_called_from_several_threads() -> None:
    inputs = problem(40, 3000, torch.float32)
    expected_results = with_gradient(**inputs)
    results: list[tuple] = []
    threads = [threading.Thread(target=lambda: results.append(with_gradient(**inputs))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, expected_results, strict=True))


@pytest.mark.parametrize("backend", on_cpu("cpp", "triton", "reference"))
def test_torch_accepts_the_operators(backend: str) -> None:
    inputs = problem(4, 20, torch.float32)
    logits, targets, g, h = inputs["logits"], inputs["targets"], inputs["g"], inputs["h"]
    numbers = ops.logprob_from_logits(logits, targets)
    library = torch.ops.areal_mega
    for needs_grad in (False, True):
        arguments = (logits.clone().requires_grad_(needs_grad), targets, 0.7, 0, 20, 20, "", False, backend)
        torch.library.opcheck(library.logprob_from_logits.default, arguments)
    rest = targets, 0.7, 0, 20, *numbers, g, h, backend
    torch.library.opcheck(library.logprob_from_logits_backward.default, (logits, *rest))
    torch.library.opcheck(library.logprob_from_logits_backward_.default, (logits, *rest))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_into_one_graph_for_all_lengths(inplace: bool) -> None:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, inplace: bool) -> Tensor:
        logits = hidden @ weight.t()
        logprob, entropy = ops.logprob_from_logits(logits, targets, temperature=0.7, inplace_backward=inplace)
        return (logprob + 0.1 * entropy).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    for tokens, vocabulary in ((3, 20), (11, 20), (8, 33)):
        hidden, weight = (torch.randn(n, 6, generator=generator).requires_grad_() for n in (tokens, vocabulary))
        targets = torch.randint(-1, vocabulary, (tokens,), generator=generator)
        plain = torch.autograd.grad(loss(hidden, weight, targets, False), (hidden, weight))
        once = torch.autograd.grad(compiled(hidden, weight, targets, inplace), (hidden, weight))
        for a, b in zip(once, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


LOGITS, TARGETS = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
MISTAKES = {
    "logits_dtype": ({"logits": LOGITS.long()}, r"logits is torch.int64.*expected float16"),
    "logits_shape": ({"logits": LOGITS[0]}, r"logits .* shape \[5\]: expected .* shape \[T, V\]"),
    "targets_dtype": ({"targets": TARGETS.float()}, r"targets is torch.float32: expected int64 or int32"),
    "targets_shape": ({"targets": TARGETS[:2]}, r"targets .* shape \[2\].*expected .* shape \[3\]"),
    "targets_device": ({"targets": TARGETS.to("meta")}, r"targets .* on meta.*on cpu"),
    "targets_range": ({"targets": TARGETS + 5}, "targets has 5: expected ids below 5"),
    "targets_padded": ({"targets": TARGETS + 4, "vocab_size": 4}, "targets has 4: expected ids below 4"),
    "temperature_0": ({"temperature": 0.0}, "temperature is 0.0: expected a number above 0"),
    "temperature_nan": ({"temperature": math.nan}, "temperature is nan"),
    "backend": ({"backend": "cuda"}, "backend=cuda: logit_rows has no such backend for tensors on cpu"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.logprob_from_logits(**{"logits": LOGITS, "targets": TARGETS, **change})
