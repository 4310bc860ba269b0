"""The two passes over rows of logits: every backend and instruction set against autograd in float64."""

from __future__ import annotations

import math
import threading
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel, each_device_of, each_kernel_of, kernels_of
from ops.logit_rows_oracle import DTYPES, Expected, assert_within, expected
from torch import Tensor

from areal_mega.ops import logit_rows
from areal_mega.ops.vocab_parallel import combine


def both_passes(
    logits: Tensor,
    targets: Tensor,
    columns: int | None = None,
    temperature: float = 1.0,
    g: Tensor | None = None,
    h: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics, log-prob, entropy and gradient."""
    columns = logits.shape[1] if columns is None else columns
    rows = logit_rows.statistics(logits, targets, columns, temperature, backend)
    logprob, entropy, lse = combine(rows, None)
    out = torch.full_like(logits, 7.0) if out is None else out
    logit_rows.gradient_(logits, targets, columns, temperature, lse, entropy, g, h, out, backend)
    return rows, logprob, entropy, out


KERNELS = kernels_of(both_passes, "reference", "cpp", "triton")
each_kernel = each_kernel_of(KERNELS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

WIDTHS = [1, 2, 3, 7, 8, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049, 4097, 16383, 16385]


def problem(rows: int, width: int, dtype: torch.dtype, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, width, generator=generator) * scale).to(dtype)
    return logits, torch.randint(0, width, (rows,), generator=generator)


def upstream(rows: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, rows, generator=generator).to(logit_rows.number_dtype(dtype)))


def check(
    kernel: Kernel, logits: Tensor, targets: Tensor, temperature: float = 1.0, exact: Expected | None = None
) -> None:
    g, h = upstream(len(logits), logits.dtype)
    _, logprob, entropy, grad = kernel(logits, targets, temperature=temperature, g=g, h=h)
    exact = exact or expected(logits, targets, temperature, g, h)
    assert_within(logprob, exact.logprob, exact.logprob_error)
    assert_within(entropy, exact.entropy, exact.entropy_error)
    assert_within(grad, exact.grad, exact.grad_error)
    assert entropy.ge(0).all()


@cache
def problem_and_answer(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Expected]:
    logits, targets = problem(2, width, dtype)
    return logits, targets, expected(logits, targets, 1.0, *upstream(2, dtype))


@each_kernel
@each_dtype
def test_equals_autograd_at_every_width(kernel: Kernel, dtype: torch.dtype) -> None:
    for width in WIDTHS:
        logits, targets, exact = problem_and_answer(width, dtype)
        check(kernel, logits, targets, exact=exact)


@each_kernel
@each_dtype
def test_statistics_are_what_they_are_called(kernel: Kernel, dtype: torch.dtype) -> None:
    logits, targets = problem(4, 3000, dtype)
    targets[1:3] = torch.tensor([-5, 3000])
    maximum, total, weighted, target = kernel(logits, targets, columns=2900, temperature=0.5)[0].double()
    z = logits[:, :2900].double() * 2
    below = z - z.amax(1, keepdim=True)
    tolerance = {"rtol": 2e-6, "atol": 1e-6}
    assert torch.equal(maximum, z.amax(1))
    torch.testing.assert_close(total, below.exp().sum(1), **tolerance)
    torch.testing.assert_close(weighted, (below.exp() * below).sum(1), **tolerance)
    assert torch.equal(target[[0, 3]], z[[0, 3], targets[[0, 3]]])
    assert target[1:3].isneginf().all()


@each_kernel
@pytest.mark.parametrize("offset", [0.0, 1e2, -1e2, 1e4, -1e4, 3e4, -3e4, -120.0, -200.0])
def test_an_offset_changes_nothing(kernel: Kernel, offset: float) -> None:
    """Log-prob and entropy come from differences of logits, whose error does not grow with the offset."""
    logits, targets = problem(3, 500, torch.float32)
    check(kernel, logits + offset, targets)
    check(kernel, (logits + offset).double(), targets)


@each_kernel
@each_dtype
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers_of_a_type(kernel: Kernel, dtype: torch.dtype, sign: int) -> None:
    logits = torch.full((2, 100), sign * torch.finfo(dtype).max, dtype=dtype)
    logits[1, 50] = 0
    targets = torch.tensor([3, 50])
    g, h = torch.ones(2, 2, dtype=logit_rows.number_dtype(dtype))
    _, logprob, entropy, grad = kernel(logits, targets, g=g, h=h)
    among = 99 if sign > 0 else 1
    expected_logprob = [-math.log(100), -torch.finfo(dtype).max if sign > 0 else 0.0]
    exact = torch.tensor(expected_logprob, dtype=torch.float64)
    torch.testing.assert_close(logprob.double(), exact, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(entropy.double(), torch.tensor([math.log(100), math.log(among)]).double())
    assert grad.isfinite().all()


@each_kernel
@each_dtype
@pytest.mark.parametrize("gap", [0.0, 20.0, 88.0, 104.0, 1e3])
def test_a_peak(kernel: Kernel, dtype: torch.dtype, gap: float) -> None:
    logits = torch.zeros(2, 300, dtype=dtype)
    logits[:, 17] = gap
    check(kernel, logits, torch.tensor([17, 5]))


@each_kernel
@each_dtype
@pytest.mark.parametrize("gap", [5.0, 12.0, 20.0, 40.0])
def test_the_gradient_at_a_likely_target_keeps_its_digits(kernel: Kernel, dtype: torch.dtype, gap: float) -> None:
    """1 - p, where p is 1 to all the digits it has: the log-sum-exp tells. A vocabulary of two, the other one far."""
    numbers = logit_rows.number_dtype(dtype)
    lse = torch.tensor([math.log1p(math.exp(-gap))], dtype=numbers)
    other = torch.zeros(1, dtype=numbers)

    def gradient(logits: Tensor, targets: Tensor, backend: str = "") -> Tensor:
        out = torch.empty_like(logits)
        logit_rows.gradient_(logits, targets, 2, 1.0, lse, other, other + 1, None, out, backend)
        return out

    name = next(name for name, value in KERNELS.items() if value is kernel)
    kernel = kernels_of(gradient, "reference", "cpp", "triton")[name]
    grad = kernel(torch.tensor([[0.0, -gap]], dtype=dtype), torch.zeros(1, dtype=torch.int64))
    exact = math.exp(-gap) / (1 + math.exp(-gap))
    rounding = torch.finfo(dtype)
    tolerance = max(rounding.eps, 1e-5) * exact + rounding.smallest_normal * rounding.eps
    assert abs(grad[0, 0].item() - exact) <= tolerance
    assert abs(grad[0, 1].item() + exact) <= tolerance


@each_kernel
@each_dtype
@pytest.mark.parametrize("width", [1, 2, 3, 1000, 151936])
def test_uniform_rows_have_the_largest_entropy(kernel: Kernel, dtype: torch.dtype, width: int) -> None:
    logits = torch.full((2, width), 2.5, dtype=dtype)
    _, logprob, entropy, _ = kernel(logits, torch.tensor([0, width - 1]))
    most = torch.full((2,), math.log(width), dtype=torch.float64)
    torch.testing.assert_close(entropy.double(), most, rtol=1e-6, atol=0)
    torch.testing.assert_close(logprob.double(), -most, rtol=1e-6, atol=0)


@each_kernel
@each_dtype
def test_impossible_tokens_add_nothing(kernel: Kernel, dtype: torch.dtype) -> None:
    """Masks of top-k and top-p sampling: some, all but one, all of the first blocks, and the target itself."""
    logits, targets = problem(5, 5000, dtype)
    logits[0, ::3] = -torch.inf
    logits[1, torch.arange(5000) != targets[1]] = -torch.inf
    logits[2, :4100] = -torch.inf
    logits[3, 4100:] = -torch.inf
    logits[4, targets[4]] = -torch.inf
    check(kernel, logits, targets)
    g, h = upstream(5, dtype)
    _, logprob, entropy, grad = kernel(logits, targets, g=g, h=h)
    assert logprob[1] == 0 and entropy[1] == 0
    assert logprob[4] == -torch.inf
    impossible = logits.isneginf()
    impossible[torch.arange(5), targets] = False
    assert grad[impossible].eq(0).all()


@each_kernel
@each_dtype
def test_a_row_without_any_possible_token(kernel: Kernel, dtype: torch.dtype) -> None:
    logits = torch.full((2, 2100), -torch.inf, dtype=dtype)
    g = torch.tensor([2.0, 0.0], dtype=logit_rows.number_dtype(dtype))
    (maximum, total, weighted, target), logprob, entropy, grad = kernel(
        logits, torch.tensor([2050, 1]), g=g, h=g, temperature=0.5
    )
    assert maximum.isneginf().all() and target.isneginf().all()
    assert total.eq(0).all() and weighted.eq(0).all()
    assert logprob.isneginf().all() and entropy.eq(0).all()
    assert grad[0, 2050] == 4
    grad[0, 2050] = 0
    assert grad.eq(0).all()


@each_kernel
@each_dtype
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("others", [0.5, -torch.inf])
def test_poison_stays_in_its_row(kernel: Kernel, dtype: torch.dtype, poison: float, others: float) -> None:
    logits, targets = problem(3, 5000, dtype)
    g, h = upstream(3, dtype)
    clean = kernel(logits, targets, g=g, h=h)
    for at in (0, 2100, 4999):
        logits[1] = others
        logits[1, at] = poison
        poisoned = kernel(logits, targets, g=g, h=h)
        for before, after in zip(clean[1:], poisoned[1:], strict=True):
            assert torch.equal(before[[0, 2]], after[[0, 2]])
            assert after[1].isnan().all()


@each_kernel
def test_denormals_and_negative_zero(kernel: Kernel) -> None:
    for dtype in DTYPES:
        tiny = torch.finfo(dtype).smallest_normal / 4
        logits = torch.tensor([[tiny, -tiny, 0.0, -0.0, 1.0]], dtype=dtype)
        check(kernel, logits, torch.tensor([1]))


@each_kernel
@each_dtype
@pytest.mark.parametrize("temperature", [1e-2, 0.7, 1.0, 5.0])
def test_temperature(kernel: Kernel, dtype: torch.dtype, temperature: float) -> None:
    check(kernel, *problem(3, 2500, dtype), temperature=temperature)


@each_kernel
@each_dtype
@pytest.mark.parametrize("columns", [0, 1, 2100, 3000])
def test_padded_columns_are_not_there(kernel: Kernel, dtype: torch.dtype, columns: int) -> None:
    logits, _ = problem(3, 3000, dtype)
    targets = torch.tensor([0, columns - 1, columns])
    logits[:, columns:] = torch.nan
    g, h = upstream(3, dtype)
    rows, logprob, entropy, grad = kernel(logits, targets, columns=columns, g=g, h=h)
    alone = kernel(logits[:, :columns].clone(), targets, g=g, h=h)
    assert grad[:, columns:].eq(0).all()
    for a, b in zip((rows, logprob, entropy, grad[:, :columns]), alone, strict=True):
        assert torch.equal(a, b)
    if not columns:
        assert rows[[0, 3]].isneginf().all() and rows[1:3].eq(0).all()


@each_kernel
@each_dtype
def test_only_what_is_asked_for_flows_back(kernel: Kernel, dtype: torch.dtype) -> None:
    logits, targets = problem(4, 700, dtype)
    g, h = upstream(4, dtype)
    zero = torch.zeros_like(g)
    g[2] = h[2] = 0
    logits[2] = torch.nan
    for with_g, with_h in ((g, None), (None, h), (g, h), (None, None)):
        given = kernel(logits, targets, g=with_g, h=with_h)[3]
        zeros = kernel(logits, targets, g=zero if with_g is None else with_g, h=zero if with_h is None else with_h)[3]
        assert torch.equal(given, zeros)
        assert given[2].eq(0).all()


@each_kernel
@pytest.mark.parametrize("size", [-3.0, 1e4, 1e-4])
def test_upstream_of_any_size(kernel: Kernel, size: float) -> None:
    logits, targets = problem(4, 600, torch.float32)
    g, h = (x * size for x in upstream(4, torch.float32))
    grad = kernel(logits, targets, g=g, h=h)[3]
    exact = expected(logits, targets, 1.0, g, h)
    assert_within(grad, exact.grad, exact.grad_error)
    terms = exact.grad.abs().sum(1) + exact.grad_error.sum(1)
    assert (grad.double().sum(1).abs() <= 1e-6 * terms).all()


@each_kernel
@each_dtype
def test_in_place_and_in_any_layout_it_is_the_same(kernel: Kernel, dtype: torch.dtype) -> None:
    logits, targets = problem(5, 2111, dtype)
    g, h = upstream(5, dtype)
    plain = kernel(logits, targets, g=g, h=h)
    own = logits.clone()
    assert torch.equal(kernel(own, targets, g=g, h=h, out=own)[3], plain[3])
    assert torch.equal(own, plain[3])

    wide = torch.full((5, 3003), torch.nan, dtype=dtype)
    shifted = wide[:, 3:2114]  # an odd address, and more between rows
    shifted.copy_(logits)
    doubled = torch.stack([targets, targets], dim=1)[:, 0]
    result = kernel(shifted, doubled, g=g, h=h, out=shifted)
    for a, b in zip(result, plain, strict=True):
        assert torch.equal(a, b)
    assert wide[:, :3].isnan().all() and wide[:, 2114:].isnan().all()


@each_kernel
def test_rows_of_stride_0(kernel: Kernel) -> None:
    logits, targets = problem(1, 100, torch.float32)
    many = kernel(logits.expand(4, 100), targets.expand(4))
    assert torch.equal(many[1], kernel(logits, targets)[1].expand(4))


@each_kernel
def test_no_rows(kernel: Kernel) -> None:
    rows, logprob, _, grad = kernel(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert rows.shape == (4, 0) and logprob.shape == (0,) and grad.shape == (0, 5)


@each_kernel_of({name: kernel for name, kernel in KERNELS.items() if name not in ("reference", "triton")})
def test_more_than_2_to_the_31_logits(kernel: Kernel) -> None:
    """Two rows far apart in memory of which the rest is never touched."""
    memory = torch.empty(2**31 + 5000, dtype=torch.bfloat16)
    far = memory.as_strided((2, 4000), (2**31, 1))
    logits, targets = problem(2, 4000, torch.bfloat16)
    far.copy_(logits)
    g, h = upstream(2, torch.bfloat16)
    plain = kernel(logits, targets, g=g, h=h)
    for a, b in zip(kernel(far, targets, g=g, h=h, out=far), plain, strict=True):
        assert torch.equal(a, b)


@each_kernel
@each_dtype
def test_wide_rows_whose_parts_have_nothing_in_common(kernel: Kernel, dtype: torch.dtype) -> None:
    """A GPU gives a row to several programs: some find nothing but -inf, or far smaller logits than the others."""
    logits, targets = problem(5, 40_000, dtype)
    logits[0, :20_000] = -torch.inf
    logits[1, 20_000:] = -torch.inf
    logits[2, 16_384:] += 200
    logits[3, 1000:] -= 200
    targets[:4] = torch.tensor([30_000, 0, 39_999, 17_000])
    check(kernel, logits, targets)
    logits[4, 35_000] = torch.nan
    assert all(x[4].isnan().all() for x in kernel(logits, targets, g=torch.ones_like(upstream(5, dtype)[0]))[1:])


@each_kernel
def test_a_row_does_not_see_its_company(kernel: Kernel) -> None:
    logits, targets = problem(9, 3001, torch.float32)
    g, h = upstream(9, torch.float32)
    together = kernel(logits, targets, g=g, h=h)
    for row in range(9):
        alone = kernel(*(x[row : row + 1] for x in (logits, targets)), g=g[row : row + 1], h=h[row : row + 1])
        assert torch.equal(alone[3], together[3][row : row + 1])
        assert torch.equal(alone[0][:, 0], together[0][:, row])


@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("cpp")])
def test_threads_change_nothing(name: str) -> None:
    """Neither how many there are, nor that others call at the same time."""
    kernel = KERNELS[name]
    logits, targets = problem(60, 5001, torch.bfloat16)
    g, h = upstream(60, torch.bfloat16)
    once = kernel(logits, targets, g=g, h=h)
    before = torch.get_num_threads()
    results: list[tuple] = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(kernel(logits, targets, g=g, h=h))
    finally:
        torch.set_num_threads(before)
    callers = [threading.Thread(target=lambda: results.append(kernel(logits, targets, g=g, h=h))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 7
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, once, strict=True))


@each_device_of(KERNELS)
@settings(max_examples=60)
@given(
    rows=st.integers(0, 4),
    width=st.integers(1, 90) | st.integers(2000, 2200),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0, 300.0]),
    offset=st.sampled_from([0.0, -50.0, 1000.0]),
    temperature=st.floats(0.05, 20),
    masked=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_every_kernel_agrees_on_any_rows(kernels, rows, width, dtype, seed, scale, offset, temperature, masked) -> None:
    logits, targets = problem(rows, width, dtype, seed, scale)
    logits += offset
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=generator) < masked
    mask[:, seed % width] = False
    logits[mask] = -torch.inf
    exact = expected(logits, targets, temperature, *upstream(rows, dtype))
    for kernel in kernels.values():
        check(kernel, logits, targets, temperature, exact)
        assert kernel(logits, targets, temperature=temperature)[2].le(math.log(width) + 1e-5).all()


LOGITS, TARGETS, NUMBERS = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), torch.zeros(3)
MISTAKES = {
    "logits_dtype": ({"logits": LOGITS.long()}, r"logits is torch.int64.*expected float16"),
    "logits_shape": ({"logits": LOGITS[None]}, r"logits .* shape \[1, 3, 5\]: expected .* shape \[T, V\]"),
    "logits_layout": ({"logits": torch.zeros(5, 3).t()}, r"logits has strides \[1, 3\]: expected rows"),
    "out_layout": ({"out": torch.zeros(5, 3).t()}, r"out has strides \[1, 3\]: expected rows"),
    "out_dtype": ({"out": LOGITS.double()}, r"out is torch.float64.*expected torch.float32"),
    "out_shape": ({"out": LOGITS[:2]}, r"out .* shape \[2, 5\].*expected .* shape \[3, 5\]"),
    "targets_dtype": ({"targets": TARGETS.int()}, r"targets is torch.int32.*expected torch.int64"),
    "targets_shape": ({"targets": TARGETS[:2]}, r"targets .* shape \[2\].*expected .* shape \[3\]"),
    "columns": ({"columns": 6}, "columns is 6: expected 0 to 5"),
    "g_dtype": ({"g": NUMBERS.double()}, "grad_logprob is torch.float64"),
    "h_shape": ({"h": NUMBERS[:2]}, r"grad_entropy .* shape \[2\]"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        both_passes(**{"logits": LOGITS, "targets": TARGETS, "backend": "cpp", **change})
