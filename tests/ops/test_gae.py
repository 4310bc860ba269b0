"""GAE: the reference against the definition as a sum, every instruction set against the float64 reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel, each_device_of, each_kernel_of, kernels_of
from torch import Tensor

from areal_mega import _C, ops
from areal_mega.ops import native

KERNELS = kernels_of(ops.gae, "reference", "cpp")
each_kernel = each_kernel_of(KERNELS)

# Around the lengths at which a vector of 4, 8 or 16 tokens is full.
EDGE_LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 0, 63, 64, 65, 127, 128, 129, 0]


def bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def problem(
    lengths: Sequence[int], seed: int = 0, valid: float = 1.0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor | None]:
    """Random arguments; each token is valid with the given probability."""
    g = torch.Generator().manual_seed(seed)
    n, b = sum(lengths), len(lengths)
    return {
        "rewards": torch.randn(n, generator=g, dtype=torch.float64).to(dtype),
        "values": torch.randn(n, generator=g, dtype=torch.float64).to(dtype),
        "cu_seqlens": bounds(lengths),
        "loss_mask": torch.rand(n, generator=g) < valid if valid < 1 else None,
        "bootstrap": torch.randn(b, generator=g, dtype=torch.float64).to(dtype),
    }


def by_definition(
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float | Tensor,
    loss_mask: Tensor | None,
    bootstrap: Tensor | None,
    critic_lam: float | None = None,
) -> tuple[Tensor, Tensor]:
    """A[t] = sum over l of (gamma lam)^l delta[t + l], written as one matrix product for each sequence."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for i, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
        at = torch.arange(begin, end)
        if loss_mask is not None:
            at = at[loss_mask[begin:end]]
        r, v = rewards[at], values[at]
        last = torch.zeros(1, dtype=r.dtype) if bootstrap is None else bootstrap[i : i + 1]
        delta = r + gamma * torch.cat([v, last])[1:] - v
        distance = torch.arange(len(at)) - torch.arange(len(at))[:, None]
        own_lam = float(lam[i]) if isinstance(lam, Tensor) else lam
        for of, use in ((advantages, own_lam), (returns, own_lam if critic_lam is None else critic_lam)):
            weights = torch.where(distance >= 0, (gamma * use) ** distance.clamp(min=0).double(), 0)
            of[at] = weights @ delta
        returns[at] += v
    return advantages, returns


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


@each_kernel
@pytest.mark.parametrize("valid", [1.0, 0.8, 0.3])
@pytest.mark.parametrize(("gamma", "lam"), [(1, 1), (0.99, 0.95), (1, 0), (0, 1), (0.5, 0.5)])
def test_equals_the_definition(kernel: Kernel, gamma: float, lam: float, valid: float) -> None:
    inputs = problem(EDGE_LENGTHS, valid=valid)
    assert_same(kernel(gamma=gamma, lam=lam, **inputs), by_definition(gamma=gamma, lam=lam, **inputs), 1e-11)


@each_kernel
def test_float32_is_close_to_the_float64_reference(kernel: Kernel) -> None:
    inputs = problem([*EDGE_LENGTHS, 1500], valid=0.9, dtype=torch.float32)
    exact = {k: v.double() if v.dtype == torch.float32 else v for k, v in inputs.items()}
    actual = kernel(gamma=1.0, lam=1.0, **inputs)
    assert all(x.dtype == torch.float32 for x in actual)
    assert_same(actual, ops.gae(gamma=1.0, lam=1.0, backend="reference", **exact), 1e-4)


@each_device_of(KERNELS)
@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), max_size=8),
    seed=st.integers(0, 2**31),
    valid=st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1) | st.none(),
    critic_lam=st.floats(0, 1) | st.none(),
    with_bootstrap=st.booleans(),
)
def test_every_kernel_agrees_on_any_batch(
    kernels, lengths, seed, valid, gamma, lam, critic_lam, with_bootstrap
) -> None:
    """lam None: each sequence has its own."""
    inputs = problem(lengths, seed, valid)
    if not with_bootstrap:
        inputs["bootstrap"] = None
    if lam is None:
        lam = torch.rand(len(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    numbers = {"gamma": gamma, "lam": lam, "critic_lam": critic_lam}
    expected = by_definition(**numbers, **inputs)
    for kernel in kernels.values():
        assert_same(kernel(**numbers, **inputs), expected, 1e-10)


@each_kernel
@pytest.mark.parametrize("valid", [1.0, 0.6])
def test_decoupled_lambdas_are_two_passes_in_one(kernel: Kernel, valid: float) -> None:
    inputs = problem(EDGE_LENGTHS, valid=valid)
    advantages, returns = kernel(gamma=0.9, lam=0.5, critic_lam=1.0, **inputs)
    assert_same((advantages,), (kernel(gamma=0.9, lam=0.5, **inputs)[0],), 1e-14)
    assert_same((returns,), (kernel(gamma=0.9, lam=1.0, **inputs)[1],), 1e-14)


@each_kernel
def test_sequences_with_lambdas_of_their_own_are_as_if_alone(kernel: Kernel) -> None:
    inputs, lams = problem([20, 0, 40], valid=0.8), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    together = kernel(gamma=0.9, lam=lams, **inputs)
    for begin, end, sequence in ((0, 20, 0), (20, 60, 2)):
        own = {name: inputs[name][begin:end] for name in ("rewards", "values", "loss_mask")}
        own |= {"cu_seqlens": bounds([end - begin]), "bootstrap": inputs["bootstrap"][sequence : sequence + 1]}
        alone = kernel(gamma=0.9, lam=float(lams[sequence]), **own)
        assert_same([x[begin:end] for x in together], alone, 1e-14)


def test_length_adaptive_lambdas() -> None:
    lams = ops.length_adaptive_lambda(torch.tensor([0, 1, 10, 20, 40, 400]), alpha=0.05)
    torch.testing.assert_close(lams, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.95]))
    with pytest.raises(ValueError, match="alpha is 0: expected a number above 0"):
        ops.length_adaptive_lambda(torch.tensor([3]), alpha=0)


# What the kernels cut long sequences into.
BLOCK = 8192


def serially(x: dict[str, Tensor | None], gamma: float, lam: Tensor, critic_lam: float) -> tuple[Tensor, Tensor]:
    """The recurrence on Python's floats: fast enough for long sequences, and independent of the kernels' blocks."""
    rewards, values = x["rewards"].tolist(), x["values"].tolist()
    mask = [True] * len(rewards) if x["loss_mask"] is None else x["loss_mask"].tolist()
    advantages, returns = [0.0] * len(rewards), [0.0] * len(rewards)
    for i, (begin, end) in enumerate(pairwise(x["cu_seqlens"].tolist())):
        value, a, critic_a = float(x["bootstrap"][i]), 0.0, 0.0
        for t in reversed(range(begin, end)):
            if mask[t]:
                delta = rewards[t] + gamma * value - values[t]
                advantages[t] = a = delta + gamma * float(lam[i]) * a
                critic_a = delta + gamma * critic_lam * critic_a
                returns[t], value = critic_a + values[t], values[t]
    return torch.tensor(advantages, dtype=torch.float64), torch.tensor(returns, dtype=torch.float64)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("valid", [1.0, 0.9, 0.0002])
def test_sequences_longer_than_a_block(isa: str, valid: float) -> None:
    """Lengths around whole blocks, short neighbours, and with few valid tokens whole blocks without any."""
    lengths = [BLOCK, 3, BLOCK + 1, 0, 3 * BLOCK - 1, 3 * BLOCK, 100, 4 * BLOCK + 5000, BLOCK - 1]
    inputs = problem(lengths, valid=valid)
    lams = torch.tensor([1, 0.5, 0.9999, 1, 1, 0, 0.9, 0.99999, 1], dtype=torch.float64)
    with native.instruction_set(isa):
        actual = ops.gae(gamma=1.0, lam=lams, critic_lam=0.9995, backend="cpp", **inputs)
    assert_same(actual, serially(inputs, 1.0, lams, 0.9995), 1e-9)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_a_nan_in_a_long_sequence_reaches_all_blocks_before_it_and_no_other(isa: str) -> None:
    inputs = problem([BLOCK + 9, 5 * BLOCK, BLOCK + 9], valid=0.99)
    poisoned = BLOCK + 9 + 2 * BLOCK + 77
    inputs["loss_mask"][poisoned] = True
    with native.instruction_set(isa):
        clean = ops.gae(gamma=1.0, lam=1.0, critic_lam=0.5, backend="cpp", **inputs)
        inputs["rewards"][poisoned] = float("nan")
        dirty = ops.gae(gamma=1.0, lam=1.0, critic_lam=0.5, backend="cpp", **inputs)
    reached = inputs["loss_mask"].clone()
    reached[: BLOCK + 9] = reached[poisoned + 1 :] = False
    for before, after in zip(clean, dirty, strict=True):
        assert after[reached].isnan().all()
        assert torch.equal(after[~reached], before[~reached])


@each_kernel
def test_masked_tokens_are_skipped_and_never_read(kernel: Kernel) -> None:
    """Prompt, tool output and padding hold NaN; the rest is as if they were not there."""
    inputs = problem([60, 50], valid=1.0)
    mask = torch.ones(110, dtype=torch.bool)
    for masked in (slice(0, 17), slice(30, 35), slice(58, 60), slice(60, 63), slice(80, 110)):
        mask[masked] = False
    inputs["rewards"][~mask] = inputs["values"][~mask] = float("nan")
    advantages, returns = kernel(gamma=0.9, lam=0.8, **{**inputs, "loss_mask": mask})
    assert advantages[~mask].eq(0).all()
    assert returns[~mask].eq(0).all()

    kept = {name: inputs[name][mask] for name in ("rewards", "values")}
    lengths = [int(part.sum()) for part in mask.split([60, 50])]
    alone = by_definition(
        gamma=0.9, lam=0.8, cu_seqlens=bounds(lengths), loss_mask=None, bootstrap=inputs["bootstrap"], **kept
    )
    assert_same((advantages[mask], returns[mask]), alone, 1e-12)


@each_kernel
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_nan_stays_in_the_past_of_its_own_sequence(kernel: Kernel, poison: float) -> None:
    inputs = problem([40, 50, 40])
    clean = kernel(gamma=0.9, lam=0.8, **inputs)[0]
    inputs["rewards"][40 + 25] = poison
    advantages = kernel(gamma=0.9, lam=0.8, **inputs)[0]
    reached = torch.zeros(130, dtype=torch.bool)
    reached[40 : 40 + 26] = True
    assert not advantages[reached].isfinite().any()
    assert torch.equal(advantages[~reached], clean[~reached])


@each_kernel
def test_order_and_company_of_sequences_do_not_matter(kernel: Kernel) -> None:
    check_company(kernel, [33, 0, 5, 64, 17])


@pytest.mark.parametrize("isa", _C.available_isas())
def test_company_of_long_sequences_does_not_matter(isa: str) -> None:
    with native.instruction_set(isa):
        check_company(partial(ops.gae, backend="cpp"), [BLOCK - 1, 3 * BLOCK + 7, 2, BLOCK + 1, BLOCK])


def check_company(kernel: Kernel, lengths: list[int]) -> None:
    inputs = problem(lengths, valid=0.7)
    advantages = kernel(gamma=0.9, lam=0.8, **inputs)[0].split(lengths)
    pieces = {k: inputs[k].split(lengths) for k in ("rewards", "values", "loss_mask")}
    order = [3, 1, 4, 0, 2]
    permuted = {k: torch.cat([v[i] for i in order]) for k, v in pieces.items()}
    shuffled = kernel(
        gamma=0.9,
        lam=0.8,
        cu_seqlens=bounds([lengths[i] for i in order]),
        bootstrap=inputs["bootstrap"][order],
        **permuted,
    )[0]
    assert torch.equal(shuffled, torch.cat([advantages[i] for i in order]))


def test_a_million_undiscounted_float32_tokens_keep_their_digits() -> None:
    inputs = problem([2**20], dtype=torch.float32)
    suffix_sums = inputs["rewards"].double().flip(0).cumsum(0).flip(0) + inputs["bootstrap"].double()
    for isa in _C.available_isas():
        with native.instruction_set(isa):
            returns = ops.gae(gamma=1.0, lam=1.0, backend="cpp", **inputs)[1]
        assert (returns - suffix_sums).abs().max() / suffix_sums.abs().max() < 1e-5


def test_the_number_of_threads_changes_nothing() -> None:
    inputs = problem([300, 70000, 0, 12, 40000] + [7] * 5000, valid=0.9, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(torch.stack(ops.gae(gamma=0.99, lam=0.95, critic_lam=1.0, **inputs)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_int64_bounds_strided_inputs_and_gradients_are_taken_care_of() -> None:
    inputs = problem([20, 30], dtype=torch.float32)
    expected = ops.gae(gamma=0.9, lam=0.8, **inputs)
    inputs["cu_seqlens"] = inputs["cu_seqlens"].long()
    for name in ("rewards", "values"):
        inputs[name] = torch.stack([inputs[name], inputs[name]], dim=1)[:, 0].requires_grad_()
    actual = ops.gae(gamma=0.9, lam=0.8, **inputs)
    assert_same(actual, expected, 0)
    assert not actual[0].requires_grad


MISTAKES = {
    "rewards_dtype": ({"rewards": torch.zeros(5, dtype=torch.bfloat16)}, r"rewards is torch.bfloat16"),
    "rewards_shape": ({"rewards": torch.zeros(1, 5)}, r"rewards .* shape \[1, 5\].*expected .* shape \[N\]"),
    "values_shape": ({"values": torch.zeros(4)}, r"values .* shape \[4\].*expected .* shape \[5\]"),
    "values_dtype": ({"values": torch.zeros(5, dtype=torch.float64)}, r"values is torch.float64"),
    "mask_dtype": ({"loss_mask": torch.ones(5)}, r"loss_mask is torch.float32.*expected torch.bool"),
    "bootstrap_shape": ({"bootstrap": torch.zeros(5)}, r"bootstrap .* shape \[5\].*expected .* shape \[2\]"),
    "bounds_dtype": ({"cu_seqlens": torch.tensor([0.0, 5.0])}, r"cu_seqlens is torch.float32"),
    "bounds_empty": ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, r"expected .* shape \[B \+ 1\]"),
    "bounds_start": ({"cu_seqlens": torch.tensor([1, 2, 5])}, "must start at 0"),
    "bounds_end": ({"cu_seqlens": torch.tensor([0, 2, 6])}, "end at 5, the number of tokens"),
    "bounds_order": ({"cu_seqlens": torch.tensor([0, 7, 5])}, "never decrease"),
    "gamma": ({"gamma": 1.5}, r"gamma is 1.5: expected a number in \[0, 1\]"),
    "lambda": ({"lam": float("nan")}, "lam is nan"),
    "lambdas": ({"lam": torch.tensor([0.5, 1.5])}, r"lam has values outside of \[0, 1\]"),
    "lambdas_nan": ({"lam": torch.tensor([0.5, float("nan")])}, r"lam has values outside of \[0, 1\]"),
    "lambdas_shape": ({"lam": torch.tensor([0.5] * 5)}, r"lam .* shape \[5\].*expected .* shape \[2\]"),
    "lambdas_dtype": ({"lam": torch.zeros(2).double()}, "lam is torch.float64"),
    "critic_lambda": ({"critic_lam": -0.1}, r"critic_lam is -0.1: expected a number in \[0, 1\]"),
    "backend_unknown": ({"backend": "fpga"}, "backend=fpga is not a backend: expected one of cpp"),
    "backend_missing": ({"backend": "cuda"}, "backend=cuda: gae has no such backend for tensors on cpu"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change: dict, message: str) -> None:
    right = {
        "rewards": torch.zeros(5),
        "values": torch.zeros(5),
        "cu_seqlens": torch.tensor([0, 2, 5]),
        "gamma": 1.0,
        "lam": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        ops.gae(**{**right, **change})


def test_unknown_instruction_set_is_named() -> None:
    inputs = problem([3])
    with (
        native.instruction_set("neon9"),
        pytest.raises(ValueError, match="'neon9' is not available; this CPU runs: scalar"),
    ):
        ops.gae(gamma=1.0, lam=1.0, **inputs)


def test_the_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem([3])
    monkeypatch.setenv("AREAL_MEGA_OPS_BACKEND", "triton")
    with pytest.raises(ValueError, match="AREAL_MEGA_OPS_BACKEND=triton: gae has no such backend"):
        ops.gae(gamma=1.0, lam=1.0, **inputs)
    ops.gae(gamma=1.0, lam=1.0, backend="cpp", **inputs)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("valid", [1.0, 0.5])
def test_torch_accepts_the_operator(backend: str, valid: float) -> None:
    inputs = problem([5, 0, 20], valid=valid)
    lams = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64) if valid == 1 else None
    critic_lam = 0.9 if valid == 1 else None
    arguments = (*(inputs[k] for k in ("rewards", "values", "cu_seqlens")), 0.9, 0.8, lams, critic_lam)
    torch.library.opcheck(
        torch.ops.areal_mega.gae.default, (*arguments, inputs["loss_mask"], inputs["bootstrap"], backend)
    )


def test_compiles_into_one_graph_for_all_lengths() -> None:
    compiled = torch.compile(
        lambda **x: ops.gae(gamma=0.9, lam=0.8, **x)[0] * 2, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for lengths in ([20, 30], [3, 40, 9]):
        inputs = problem(lengths, valid=0.7)
        assert torch.equal(compiled(**inputs), ops.gae(gamma=0.9, lam=0.8, **inputs)[0] * 2)
