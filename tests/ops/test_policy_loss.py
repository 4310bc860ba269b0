"""The policy loss: every kernel against loops over tokens, its gradients against differences and autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel, affordable, each_device_of, each_kernel_of, kernels_of, on_cpu
from ops.policy_loss_oracle import by_definition, problem
from torch import Tensor

from areal_mega import ops
from areal_mega.ops import POLICY_STATISTICS, PolicyLossOptions
from areal_mega.ops.policy_loss import MAX_LOG_RATIO

KERNELS = kernels_of(ops.policy_loss_and_gradients, "reference", "cpp", "triton")
each_kernel = each_kernel_of(KERNELS)

FULL = PolicyLossOptions(
    clip_low=0.2, clip_high=0.28, dual_clip=2.0, behavior="token", behavior_high=1.2, kl_coef=0.3, entropy_coef=0.1
)
VARIANTS = {
    "plain": PolicyLossOptions(),
    "full": FULL,
    "mask": replace(FULL, behavior_mode="mask", behavior_low=0.9),
    "reject": replace(FULL, behavior_mode="reject", behavior_low=0.9, kl_estimator="k1"),
    "gspo": replace(FULL, ratio="sequence", clip_low=0.05, clip_high=0.05, kl_estimator="k2"),
    "gspo-product": replace(FULL, ratio="sequence", behavior="sequence", behavior_high=2.0),
    "cispo": replace(FULL, objective="cispo", dual_clip=None, behavior="sequence-mean", behavior_mode="mask"),
}
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())

# Around the lengths at which a vector of 2, 4, 8 or 16 tokens is full, and a run of eight of them.
EDGE_LENGTHS = [0, 1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 33, 0, 63, 65, 127, 129, 0]
# A batch that ends around the end of a vector or of a run, behind a run in which no token is valid.
EDGE_TOKENS = [31, 32, 33, 127, 128, 129, 255, 257]


def of(statistics: Tensor, name: str) -> float:
    return statistics[POLICY_STATISTICS.index(name)].item()


def converted(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def assert_as_defined(kernel: Kernel, inputs: dict[str, Tensor], options: PolicyLossOptions, rounding: float) -> None:
    """Within so much of the sizes of the terms of each sum."""
    expected = by_definition(inputs, options)
    loss, statistics, grad_logprobs, grad_entropy = kernel(**inputs, options=options)
    assert abs(loss.item() - expected.loss) <= rounding * expected.loss_size
    assert statistics.dtype == torch.float64
    # A kl is the rest of terms as large as the log-ratios, whose rounding remains where the kernel does not take care.
    slack = torch.zeros(len(POLICY_STATISTICS), dtype=torch.float64)
    slack[[POLICY_STATISTICS.index(k) for k in ("approx_kl", "kl")]] = len(inputs["logprobs"])
    assert ((statistics - expected.statistics).abs() <= rounding * (expected.statistics_size + slack)).all()
    assert ((grad_logprobs - expected.grad_logprobs).abs() <= rounding * expected.grad_size).all()
    if options.entropy_coef:
        torch.testing.assert_close(grad_entropy.double(), expected.grad_entropy, rtol=rounding, atol=0)
    else:
        assert grad_entropy is None


@each_kernel
@each_variant
@pytest.mark.parametrize("valid", [1.0, 0.6])
def test_equals_the_definition(kernel: Kernel, options: PolicyLossOptions, valid: float) -> None:
    assert_as_defined(kernel, problem(EDGE_LENGTHS, 0, valid), options, 1e-12)


@each_variant
@pytest.mark.parametrize("tokens", EDGE_TOKENS)
def test_ends_of_vectors_and_runs(options: PolicyLossOptions, tokens: int) -> None:
    inputs = problem([tokens], 15, valid=0.6)
    inputs["loss_mask"][: max(tokens - 40, 0)] = False
    for name, kernel in kernels_of(ops.policy_loss_and_gradients, "cpp").items():
        for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 4e-6)):
            rounded = converted(inputs, dtype)
            expected = by_definition(converted(rounded, torch.float64), options)
            loss, statistics, grad_logprobs, _ = kernel(**rounded, options=options)
            assert abs(loss.item() - expected.loss) <= rounding * expected.loss_size, name
            assert of(statistics, "tokens") == inputs["loss_mask"].sum().item(), name
            assert ((grad_logprobs - expected.grad_logprobs).abs() <= rounding * expected.grad_size).all(), name


@each_kernel
@each_variant
def test_float32_keeps_its_digits(kernel: Kernel, options: PolicyLossOptions) -> None:
    inputs = converted(problem(EDGE_LENGTHS, 1), torch.float32)
    # No token may stand between its float32 and its float64 ratio: the oracle gets the rounded arguments.
    expected = by_definition(converted(inputs, torch.float64), options)
    loss, statistics, grad_logprobs, _ = kernel(**inputs, options=options)
    assert loss.dtype == grad_logprobs.dtype == torch.float32
    assert abs(loss.item() - expected.loss) <= 1e-6 * expected.loss_size
    assert ((grad_logprobs - expected.grad_logprobs).abs() <= 4e-6 * expected.grad_size).all()
    assert ((statistics - expected.statistics).abs() <= 1e-6 * expected.statistics_size + 1e-4).all()


@st.composite
def options_of_any_kind(draw) -> PolicyLossOptions:
    objective = draw(st.sampled_from(["clip", "cispo"]))
    behavior = draw(st.sampled_from([None, "token", "sequence", "sequence-mean"]))
    mode = draw(st.sampled_from(["truncate", "mask", "reject"]))
    return PolicyLossOptions(
        objective=objective,
        clip_low=draw(st.sampled_from([0.003, 0.2, 1.0])),
        clip_high=draw(st.sampled_from([0.004, 0.28, 5.0])),
        dual_clip=draw(st.sampled_from([None, 1.2, 3.0])) if objective == "clip" else None,
        ratio=draw(st.sampled_from(["token", "sequence"])),
        behavior=behavior,
        behavior_mode=mode,
        behavior_low=draw(st.sampled_from([0.0, 0.8])) if behavior and mode != "truncate" else 0.0,
        behavior_high=draw(st.sampled_from([None, 1.2, 5.0])) if behavior else None,
        kl_coef=draw(st.sampled_from([0.0, 0.5])),
        kl_estimator=draw(st.sampled_from(["k1", "k2", "k3"])),
        entropy_coef=draw(st.sampled_from([0.0, 0.1])),
    )


@each_device_of(KERNELS)
@settings(max_examples=80)
@given(
    options=options_of_any_kind(),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    valid=st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]),
    spread=st.sampled_from([0.01, 0.3, 3.0, 15.0]),
)
def test_every_kernel_agrees_on_any_batch(kernels, options, lengths, seed, valid, spread) -> None:
    inputs = problem(lengths, seed, valid, spread)
    for kernel in kernels.values():
        assert_as_defined(kernel, inputs, options, 1e-11)


@each_kernel
@each_variant
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_masked_tokens_are_never_read(kernel: Kernel, options: PolicyLossOptions, poison: float) -> None:
    inputs = problem(EDGE_LENGTHS, 2)
    clean = kernel(**inputs, options=options)
    mask = inputs["loss_mask"]
    spoilt = {k: torch.where(mask, v, poison) if v.is_floating_point() else v for k, v in inputs.items()}
    results = kernel(**spoilt, options=options)
    for result, expected in zip(results, clean, strict=True):
        assert (result is None and expected is None) or torch.equal(result, expected)
    for gradient in results[2:]:
        assert gradient is None or gradient[~mask].eq(0).all()


@each_kernel
@each_variant
@pytest.mark.parametrize("tokens", [0, 37])
def test_without_valid_tokens_all_is_zero(kernel: Kernel, options: PolicyLossOptions, tokens: int) -> None:
    for result in kernel(**problem([tokens], 0, valid=0.0), options=options):
        assert result is None or result.eq(0).all()


@each_kernel
@each_variant
@pytest.mark.parametrize("shift", [-200.0, -100.0, -50.0, 50.0, 100.0, 200.0])
def test_far_log_ratios_stay_finite_and_pass_no_gradient(
    kernel: Kernel, options: PolicyLossOptions, shift: float
) -> None:
    inputs = converted(problem([40, 30], 3, spread=0.1), torch.float32)
    inputs["logprobs"] = inputs["logprobs"] + shift
    loss, statistics, grad, _ = kernel(**inputs, options=options)
    assert loss.isfinite() and statistics.isfinite().all()
    if options.objective == "clip":
        assert grad.eq(0).all()
    assert of(statistics, "ratio") == pytest.approx(
        inputs["loss_mask"].sum().item() * math.exp(math.copysign(MAX_LOG_RATIO, shift)), rel=1e-6
    )


def one_token(logprob: float, advantage: float, **others: float) -> dict[str, Tensor]:
    """A single valid token of proximal, behavior and reference log-prob 0."""
    values = {"logprobs": logprob, "advantages": advantage, "entropy": 0.0, "loss_weight": 1.0, **others}
    zeros = dict.fromkeys(("proximal_logprobs", "behavior_logprobs", "reference_logprobs"), 0.0)
    tensors = {k: torch.tensor([v], dtype=torch.float64) for k, v in {**zeros, **values}.items()}
    return {**tensors, "loss_mask": torch.ones(1, dtype=torch.bool), "cu_seqlens": torch.tensor([0, 1])}


@each_kernel
@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0, -0.0])
@pytest.mark.parametrize("side", ["low", "high", "dual"])
def test_a_token_exactly_at_a_bound_is_not_clipped(kernel: Kernel, side: str, advantage: float) -> None:
    """And just beyond it is, where the bound is the larger loss: one-sided differences say the same."""
    log_ratio = -0.25 if side == "low" else 0.25 if side == "high" else 0.75
    token = one_token(log_ratio, advantage)
    ratio = of(kernel(**token, options=PolicyLossOptions())[1], "ratio")  # in the kernel's own rounding
    at, beyond = {
        "low": ({"clip_low": 1 - ratio}, {"clip_low": 1 - ratio - 1e-12}),
        "high": ({"clip_high": ratio - 1}, {"clip_high": ratio - 1 - 1e-12}),
        "dual": ({"clip_high": 9.0, "dual_clip": ratio}, {"clip_high": 9.0, "dual_clip": ratio - 1e-12}),
    }[side]
    _, statistics, grad, _ = kernel(**token, options=PolicyLossOptions(**at))
    assert of(statistics, "clipped") == of(statistics, "dual_clipped") == 0
    assert grad.item() == pytest.approx(-ratio * advantage)
    _, statistics, grad, _ = kernel(**token, options=PolicyLossOptions(**beyond))
    binds = {"low": advantage < 0, "high": advantage > 0, "dual": advantage < 0}[side]
    assert of(statistics, "dual_clipped" if side == "dual" else "clipped") == binds
    assert grad.item() == (0 if binds else pytest.approx(-ratio * advantage))


@each_kernel
@pytest.mark.parametrize("mode", ["truncate", "mask", "reject"])
def test_a_behavior_weight_exactly_at_its_limits_is_inside(kernel: Kernel, mode: str) -> None:
    weighted = PolicyLossOptions(behavior="token", behavior_mode=mode)
    token = one_token(0.0, 1.0, behavior_logprobs=-0.3)
    weight = of(kernel(**token, options=replace(weighted, behavior_mode="truncate"))[1], "behavior_weight")
    assert weight == pytest.approx(math.exp(0.3))
    for high, outside in ((weight, False), (weight - 1e-12, True)):
        low = 0.0 if mode == "truncate" else 1.0
        options = replace(weighted, behavior_low=low, behavior_high=high)
        loss, statistics, grad, _ = kernel(**token, options=options)
        kept = {"truncate": high, "mask": 0.0 if outside else weight, "reject": 0.0 if outside else 1.0}[mode]
        assert of(statistics, "behavior_capped") == outside
        assert -loss.item() == -grad.item() == of(statistics, "behavior_weight") == kept


@each_kernel
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("difference", [0.0, 1e-4, -1e-4, 0.3, 3.0, -3.0, 20.0, -20.0, 20.5, 100.0, -100.0])
def test_kl_estimates_and_their_slopes(kernel: Kernel, estimator: str, difference: float) -> None:
    options = PolicyLossOptions(kl_coef=1.0, kl_estimator=estimator)
    loss, statistics, grad, _ = kernel(**one_token(difference, 0.0), options=options)
    expected = by_definition(one_token(difference, 0.0), options)
    # 1e-4: what expm1 leaves of a difference of 5e-9 between numbers of 1e-4 in float64.
    assert loss.item() == pytest.approx(expected.loss, rel=1e-11, abs=1e-19)
    assert of(statistics, "kl") == loss.item()
    assert grad.item() == pytest.approx(expected.grad_logprobs.item(), rel=1e-12)


def test_k3_of_nearby_policies_keeps_its_digits_in_float32() -> None:
    x = torch.logspace(-5, 0, 200, dtype=torch.float64)
    for sign in (1, -1):
        token = {k: v.expand(200).contiguous() for k, v in one_token(0.0, 0.0).items() if k != "cu_seqlens"}
        inputs = converted({**token, "logprobs": sign * x}, torch.float32)
        near = inputs["logprobs"].double()
        exact = (torch.expm1(-near) + near).sum().item()
        for name, kernel in kernels_of(ops.policy_loss_and_gradients, "cpp", "triton").items():
            options = PolicyLossOptions(kl_coef=1.0, kl_estimator="k3")
            assert of(kernel(**inputs, options=options)[1], "kl") == pytest.approx(exact, rel=1e-6), name


@each_kernel
@pytest.mark.parametrize("options", [o for k, o in VARIANTS.items() if k != "cispo"])
def test_gradients_are_those_of_differences(kernel: Kernel, options: PolicyLossOptions) -> None:
    """Away from the kinks, where a step of 1e-6 changes no decision."""
    inputs = problem([4, 0, 7, 1], 4, valid=0.8)
    _, _, grad, grad_entropy = kernel(**inputs, options=options)
    for name, gradient in (("logprobs", grad), ("entropy", grad_entropy)):
        if gradient is None:
            continue
        for t in range(affordable(kernel, 12, interpreted=3)):
            step = torch.zeros(12, dtype=torch.float64)
            step[t] = 1e-6
            up, down = (kernel(**{**inputs, name: inputs[name] + s}, options=options)[0] for s in (step, -step))
            assert gradient[t].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-6, abs=1e-8)


@each_kernel
def test_the_gradient_of_cispo_holds_the_ratio_constant(kernel: Kernel) -> None:
    inputs = problem([20], 5, valid=0.8)
    options = PolicyLossOptions(objective="cispo")
    ratio = (inputs["logprobs"] - inputs["proximal_logprobs"]).exp().clamp(0.8, 1.2)
    expected = torch.where(inputs["loss_mask"], -inputs["loss_weight"] * ratio * inputs["advantages"], 0.0)
    torch.testing.assert_close(kernel(**inputs, options=options)[2], expected)


@each_kernel
def test_one_long_sequence_and_many_of_one_token(kernel: Kernel) -> None:
    tokens = affordable(kernel, 2**15, interpreted=50)
    inputs = problem([tokens], 6, valid=0.9)
    options = PolicyLossOptions(ratio="sequence", clip_low=0.01, clip_high=0.01, behavior="sequence-mean")
    mask = inputs["loss_mask"]
    log_ratio = (inputs["logprobs"] - inputs["proximal_logprobs"])[mask].mean()
    _, statistics, grad, _ = kernel(**inputs, options=options)
    assert of(statistics, "ratio") / of(statistics, "tokens") == pytest.approx(log_ratio.exp().item(), rel=1e-12)
    assert grad[mask].unique().numel() == 1

    each_alone = {**inputs, "cu_seqlens": torch.arange(tokens + 1)}
    token_level = replace(options, ratio="token", behavior="token")
    for a, b in zip(kernel(**each_alone, options=options), kernel(**inputs, options=token_level), strict=True):
        assert a is b or torch.equal(a, b)


@each_kernel
@each_variant
def test_parts_of_a_batch_add_up_to_the_whole(kernel: Kernel, options: PolicyLossOptions) -> None:
    lengths = [33, 0, 70, 12]
    inputs = problem(lengths, 7)
    whole = kernel(**inputs, options=options)
    names = [k for k in inputs if k != "cu_seqlens"]
    pieces = {k: inputs[k].split(lengths) for k in names}
    parts = [
        kernel(**{k: pieces[k][i] for k in names}, cu_seqlens=torch.tensor([0, n]), options=options)
        for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(sum(p[0] for p in parts), whole[0], rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(sum(p[1] for p in parts), whole[1])
    torch.testing.assert_close(torch.cat([p[2] for p in parts]), whole[2])


@each_variant
def test_threads_and_repetition_change_nothing(options: PolicyLossOptions) -> None:
    inputs = converted(problem([300, 70000, 0, 12, 40000] + [7] * 2000, 8), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            results.append(ops.policy_loss_and_gradients(**inputs, options=options, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is b or torch.equal(a, b)


@each_kernel
@each_variant
def test_strided_and_misaligned_tensors_are_taken_care_of(kernel: Kernel, options: PolicyLossOptions) -> None:
    inputs = converted(problem([40, 33], 9), torch.float32)
    expected = kernel(**inputs, options=options)
    per_token = [k for k in inputs if k != "cu_seqlens"]
    strided = {k: torch.stack([inputs[k], inputs[k]], dim=1)[:, 0] for k in per_token}
    shifted = {k: torch.cat([inputs[k][:1], inputs[k]])[1:] for k in per_token}
    bounds = inputs["cu_seqlens"].to(torch.int32)
    for changed in (strided, shifted):
        for a, b in zip(kernel(**changed, cu_seqlens=bounds, options=options), expected, strict=True):
            assert a is b or torch.equal(a, b)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_autograd_scales_the_gradients(backend: str) -> None:
    inputs = problem([10, 20], 10)
    _, _, grad, grad_entropy = ops.policy_loss_and_gradients(**inputs, options=FULL, backend=backend)
    variables = [inputs[k].requires_grad_() for k in ("logprobs", "entropy")]
    loss, statistics = ops.policy_loss(**inputs, options=FULL, backend=backend)
    assert not statistics.requires_grad
    for upstream in (-3.0, 0.0, 1.0, 1e4):
        actual = torch.autograd.grad(loss, variables, torch.tensor(upstream).double(), retain_graph=True)
        assert torch.equal(actual[0], upstream * grad) and torch.equal(actual[1], upstream * grad_entropy)
    # The stored gradient itself is handed out where nothing scales it: who changes it is found out.
    torch.autograd.grad(loss, variables[:1], retain_graph=True)[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, variables[:1])
    loss, _ = ops.policy_loss(**inputs, options=FULL, backend=backend)
    assert torch.autograd.gradcheck(
        lambda lp, h: ops.policy_loss(**{**inputs, "logprobs": lp, "entropy": h}, options=FULL, backend=backend)[0],
        variables,
    )
    with torch.inference_mode():
        assert torch.equal(ops.policy_loss(**inputs, options=FULL, backend=backend)[0], loss)


def test_no_gradient_reaches_what_is_constant() -> None:
    inputs = problem([30], 11)
    constants = [k for k, v in inputs.items() if v.is_floating_point() and k not in ("logprobs", "entropy")]
    for name in ("logprobs", *constants):
        inputs[name].requires_grad_()
    ops.policy_loss(**{**inputs, "entropy": None}, options=replace(FULL, entropy_coef=0.0))[0].backward()
    assert inputs["logprobs"].grad is not None
    assert all(inputs[name].grad is None for name in constants)


@each_kernel
def test_what_is_not_given_counts_nothing(kernel: Kernel) -> None:
    given = problem([30], 12)
    optional = ("entropy", "behavior_logprobs", "reference_logprobs")
    inputs = {k: None if k in optional else v for k, v in given.items() if k != "cu_seqlens"}
    loss, statistics, grad, grad_entropy = kernel(**inputs, options=PolicyLossOptions())
    assert grad_entropy is None
    with_all = kernel(**given, options=PolicyLossOptions())
    assert torch.equal(loss, with_all[0]) and torch.equal(grad, with_all[2])
    for name in POLICY_STATISTICS:
        if name in ("entropy", "kl", "mismatch"):
            assert of(statistics, name) == 0 != of(with_all[1], name)
        else:
            assert of(statistics, name) == of(with_all[1], name)


N5 = {"logprobs": torch.zeros(5), "cu_seqlens": torch.tensor([0, 2, 5]), "loss_mask": torch.ones(5, dtype=torch.bool)}
SEQUENCE = PolicyLossOptions(ratio="sequence")
MISTAKES = {
    "logprobs_dtype": ({"logprobs": torch.zeros(5, dtype=torch.bfloat16)}, r"logprobs is torch.bfloat16"),
    "logprobs_shape": ({"logprobs": torch.zeros(1, 5)}, r"shape \[1, 5\].*expected .* shape \[N\]"),
    "entropy_shape": ({"entropy": torch.zeros(4)}, r"entropy .* shape \[4\].*expected .* shape \[5\]"),
    "advantages_dtype": ({"advantages": torch.zeros(5).double()}, r"advantages is torch.float64"),
    "mask_dtype": ({"loss_mask": torch.ones(5)}, r"loss_mask is torch.float32.*expected torch.bool"),
    "weight_shape": ({"loss_weight": torch.ones(())}, r"loss_weight .* shape \[\].*expected .* shape \[5\]"),
    "no_advantages": ({"advantages": None}, "advantages is None: expected a tensor"),
    "no_entropy": ({"options": PolicyLossOptions(entropy_coef=1.0)}, "entropy is None.*entropy_coef"),
    "no_behavior": ({"options": PolicyLossOptions(behavior="token")}, "behavior_logprobs is None.*behavior"),
    "no_reference": ({"options": PolicyLossOptions(kl_coef=1.0)}, "reference_logprobs is None.*kl_coef"),
    "no_bounds": ({"options": SEQUENCE, "cu_seqlens": None}, "cu_seqlens is None.*sequences"),
    "bounds_dtype": ({"cu_seqlens": torch.tensor([0.0, 5.0])}, r"cu_seqlens is torch.float32"),
    "bounds_end": ({"options": SEQUENCE, "cu_seqlens": torch.tensor([0, 2, 6])}, "end at 5, the number of tokens"),
    "bounds_order": ({"options": SEQUENCE, "cu_seqlens": torch.tensor([0, 7, 5])}, "never decrease"),
    "backend": ({"backend": "cuda"}, "backend=cuda: policy_loss has no such backend for tensors on cpu"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(change: dict, message: str) -> None:
    x = torch.zeros(5)
    right = {**N5, "entropy": None, "advantages": x, "proximal_logprobs": x, "loss_weight": x}
    with pytest.raises(ValueError, match=message):
        ops.policy_loss(**{**right, "options": PolicyLossOptions(), **change})


WRONG_OPTIONS = [
    ({"objective": "ppo"}, "objective is 'ppo': expected one of clip, cispo"),
    ({"behavior": "turn"}, "behavior is 'turn': expected one of None, token"),
    ({"clip_low": 1.5}, r"clip_low is 1.5: expected a number in \[0, 1\]"),
    ({"clip_high": math.nan}, "clip_high is nan"),
    ({"kl_coef": math.inf}, "kl_coef is inf"),
    ({"entropy_coef": -1.0}, "entropy_coef is -1.0"),
    ({"dual_clip": 1.0}, "dual_clip is 1.0: expected a number above 1"),
    ({"dual_clip": 3.0, "objective": "cispo"}, "dual_clip is 3.0: expected None, since objective is 'cispo'"),
    ({"behavior_high": 2.0}, "behavior is None: expected a level"),
    ({"behavior": "token", "behavior_low": 0.5}, "behavior_low is 0.5: expected 0, since behavior_mode is 'truncate'"),
    (
        {"behavior": "token", "behavior_mode": "mask", "behavior_low": 2.0, "behavior_high": 1.0},
        "behavior_high is 1.0: expected above 0 and at least 2.0",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG_OPTIONS)
def test_options_that_cannot_be_meant_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLossOptions(**change)


@each_variant
def test_options_survive_as_numbers(options: PolicyLossOptions) -> None:
    assert PolicyLossOptions.from_numbers(options.numbers()) == options


@pytest.mark.parametrize("backend", on_cpu("cpp", "triton", "reference"))
@pytest.mark.parametrize("name", ["plain", "gspo-product"])
def test_torch_accepts_the_operator(backend: str, name: str) -> None:
    options = VARIANTS[name]
    inputs = problem([5, 0, 20], 13)
    for variable in ("logprobs", "entropy"):
        inputs[variable].requires_grad_()
    *tensors, bounds = inputs.values()
    bounds = bounds if options.over_sequences else None
    torch.library.opcheck(torch.ops.areal_mega.policy_loss.default, (*tensors, bounds, options.numbers(), backend))


def test_compiles_into_one_graph_for_all_lengths() -> None:
    def loss_of(**x: Tensor) -> Tensor:
        return 2 * ops.policy_loss(options=VARIANTS["gspo-product"], **x)[0]

    compiled = torch.compile(loss_of, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([20, 30], [3, 40, 9]):
        inputs = problem(lengths, 14)
        inputs["logprobs"].requires_grad_()
        gradients = [torch.autograd.grad(f(**inputs), inputs["logprobs"])[0] for f in (loss_of, compiled)]
        assert torch.equal(*gradients)
