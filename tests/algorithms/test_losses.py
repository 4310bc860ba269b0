"""The losses against slow float64 loops of the formulas."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_mega.algorithms.kl import kl_estimate
from areal_mega.algorithms.losses import (
    PolicyLoss,
    SoftGate,
    ValueLoss,
    behavior_weights,
    loss_weights,
    sft_loss,
    unbiased_kl,
)
from areal_mega.data import PackedBatch
from areal_mega.ops import PolicyLossOptions

LENGTH = 11  # what aggregation=constant divides by
AGGREGATIONS = ["token-mean", "sequence-mean", "sequence-sum", "constant"]
PLAIN = {
    "clip_low": 0.2,
    "clip_high": 0.28,
    "dual_clip": None,
    "entropy_coef": 0.0,
    "kl_coef": 0.0,
    "kl_estimator": "k3",
    "behavior_cap": None,
}


def policy_loss(behavior_cap, **options):
    """The loss whose tokens are weighted up to the cap; None: not weighted."""
    behavior = None if behavior_cap is None else "token"
    return PolicyLoss(PolicyLossOptions(behavior=behavior, behavior_high=behavior_cap, **options))


def make_batch(seed, aggregation="token-mean", lengths=(5, 3, 7)):
    g = torch.Generator().manual_seed(seed)
    rows = [{"tokens": [0] * n, "loss_mask": [t > 1 for t in range(n)]} for n in lengths]
    batch = PackedBatch.pack(rows)
    n = batch.num_tokens

    def noise(scale):
        return torch.randn(n, generator=g, dtype=torch.float64) * scale

    base = -noise(1.0).abs()
    batch = batch.with_fields(
        advantages=noise(2.0),
        proximal_logprobs=base,
        behavior_logprobs=base + noise(0.3),
        reference_logprobs=base + noise(0.3),
        nll_weight=noise(0.1).abs(),
        values=noise(1.0),
        returns=noise(1.0),
    )
    tokens = float(batch["loss_mask"].sum())
    batch = batch.with_counts(tokens=tokens, sequences=float(len(lengths)))
    batch = batch.with_fields(loss_weight=loss_weights(batch, aggregation, LENGTH).double())
    outputs = {"logprobs": base + noise(0.4), "entropy": noise(1.0).abs(), "values": batch["values"] + noise(0.4)}
    return batch, outputs


def slow_policy_loss(batch, outputs, o, aggregation):
    """Loops of the formulas, one token after the other: the loss, and the loss if no terms cancelled."""
    per_sequence = []
    cu = batch.cu_seqlens.tolist()
    for a, b in pairwise(cu):
        losses = []
        for t in range(a, b):
            if not batch["loss_mask"][t]:
                continue
            lp, px = outputs["logprobs"][t].item(), batch["proximal_logprobs"][t].item()
            adv = batch["advantages"][t].item()
            ratio = math.exp(lp - px)
            loss = -min(ratio * adv, min(max(ratio, 1 - o["clip_low"]), 1 + o["clip_high"]) * adv)
            if o["dual_clip"] and adv < 0:
                loss = min(loss, -o["dual_clip"] * adv)
            if o["behavior_cap"]:
                loss *= min(math.exp(px - batch["behavior_logprobs"][t].item()), o["behavior_cap"])
            loss -= o["entropy_coef"] * outputs["entropy"][t].item()
            x = lp - batch["reference_logprobs"][t].item()
            kl = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[o["kl_estimator"]]
            losses.append(loss + o["kl_coef"] * kl)
        per_sequence.append(losses)
    count = len(per_sequence)
    weight = {
        "token-mean": lambda n: 1 / sum(map(len, per_sequence)),
        "sequence-mean": lambda n: 1 / n / count,
        "sequence-sum": lambda n: 1 / count,
        "constant": lambda n: 1 / LENGTH / count,
    }[aggregation]
    weights = [[weight(len(x))] * len(x) for x in per_sequence]
    terms = [w * x for ws, xs in zip(weights, per_sequence, strict=True) for w, x in zip(ws, xs, strict=True)]
    return sum(terms), sum(map(abs, terms))


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.sampled_from([None, 1.5, 3.0]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(["k1", "k2", "k3"]),
    st.sampled_from([None, 1.1]),
    st.sampled_from(AGGREGATIONS),
)
def test_policy_loss_matches_the_formula(seed, dual, entropy, kl, estimator, cap, aggregation):
    options = {**PLAIN, "dual_clip": dual, "entropy_coef": entropy, "kl_coef": kl, "kl_estimator": estimator}
    options["behavior_cap"] = cap
    batch, outputs = make_batch(seed, aggregation)
    loss, _ = policy_loss(**options)(batch, outputs)
    expected, size = slow_policy_loss(batch, outputs, options, aggregation)
    # loss_weights are float32; where terms of either sign cancel, their rounding remains.
    assert loss.item() == pytest.approx(expected, rel=0, abs=2e-7 * size)


def other_terms(**options):
    """A loss of all that is not in the kernel, and of what goes with it."""
    fused = PolicyLossOptions(behavior="token", behavior_high=1.1, entropy_coef=0.1, kl_estimator="k3", **options)
    return PolicyLoss(fused, SoftGate(1.0, 1.05), unbiased_kl_coef=0.5, nll_coef=0.3)


@pytest.mark.parametrize(
    "loss_of",
    [
        policy_loss(**{**PLAIN, "dual_clip": 3.0, "entropy_coef": 0.1, "kl_coef": 0.5, "behavior_cap": 1.1}),
        other_terms(),
    ],
)
def test_policy_gradient_is_that_of_finite_differences(loss_of):
    batch, outputs = make_batch(3)

    def f(logprobs, entropy):
        return loss_of(batch, {"logprobs": logprobs, "entropy": entropy})[0]

    inputs = [outputs[k].clone().requires_grad_() for k in ("logprobs", "entropy")]
    assert torch.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize(
    "loss_of",
    [policy_loss(**{**PLAIN, "entropy_coef": 0.1, "kl_coef": 0.5, "behavior_cap": 2.0}), other_terms()],
)
def test_nothing_outside_the_mask_reaches_loss_gradient_or_statistics(loss_of):
    batch, outputs = make_batch(1)
    clean, clean_stats = loss_of(batch, outputs)
    poison = torch.where(batch["loss_mask"], 0.0, float("nan")).double()
    names = ("advantages", "proximal_logprobs", "behavior_logprobs", "reference_logprobs")
    fields = {name: batch[name] + poison for name in names}
    logprobs = (outputs["logprobs"] + poison).requires_grad_()
    entropy = (outputs["entropy"] + poison).requires_grad_()
    loss, stats = loss_of(batch.with_fields(**fields), {"logprobs": logprobs, "entropy": entropy})
    loss.backward()
    assert loss.item() == clean.item() and stats == clean_stats
    for grad in (logprobs.grad, entropy.grad):
        assert grad.isfinite().all() and (grad[~batch["loss_mask"]] == 0).all()


@pytest.mark.parametrize("loss_of", [policy_loss(**{**PLAIN, "kl_coef": 0.1}), other_terms()])
def test_extreme_ratios_stay_finite(loss_of):
    batch, outputs = make_batch(1)
    for shift in (-200.0, 200.0):
        logprobs = (outputs["logprobs"] + shift).requires_grad_()
        loss, _ = loss_of(batch, {**outputs, "logprobs": logprobs})
        loss.backward()
        assert loss.isfinite() and logprobs.grad.isfinite().all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_parts_of_a_batch_add_up_to_the_whole(aggregation):
    batch, outputs = make_batch(5, aggregation)
    loss_of = policy_loss(**PLAIN)
    whole, whole_stats = loss_of(batch, outputs)
    carried = batch.with_fields(lp=outputs["logprobs"], entropy=outputs["entropy"])
    parts = [carried.select([1]), carried.select([2, 0])]
    results = [loss_of(p, {"logprobs": p["lp"], "entropy": p["entropy"]}) for p in parts]
    assert sum(r[0] for r in results).item() == pytest.approx(whole.item(), rel=1e-12)
    for name, value in whole_stats.items():
        assert sum(r[1][name] for r in results).item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_matches_the_formula(clip):
    batch, outputs = make_batch(2)
    expected = []
    for t in batch["loss_mask"].nonzero()[:, 0].tolist():
        v, old, ret = outputs["values"][t].item(), batch["values"][t].item(), batch["returns"][t].item()
        error = (v - ret) ** 2
        if clip:
            error = max(error, (old + min(max(v - old, -clip), clip) - ret) ** 2)
        expected.append(error / 2)
    loss, _ = ValueLoss(clip)(batch, outputs)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_sft_loss_is_the_mean_negative_log_likelihood_of_the_answers():
    batch, outputs = make_batch(4)
    loss, _ = sft_loss(batch, outputs)
    assert loss.item() == pytest.approx(-outputs["logprobs"][batch["loss_mask"]].mean().item(), rel=1e-6)


def test_a_batch_without_generated_tokens_gives_zero_and_no_nan():
    batch, outputs = make_batch(0)
    empty = batch.with_fields(loss_mask=torch.zeros_like(batch["loss_mask"])).with_counts(tokens=0.0, sequences=0.0)
    empty = empty.with_fields(loss_weight=loss_weights(empty, "sequence-mean").double())
    loss, stats = policy_loss(**PLAIN)(empty, outputs)
    assert loss.item() == 0 and all(v.item() == 0 for v in stats.values())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimates_of_equal_policies_vanish(estimator):
    x = torch.linspace(-5, 0, 11)
    assert kl_estimate(x, x, estimator).abs().max() == 0


def test_k1_and_k3_are_unbiased():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), estimator)).sum(), exact)


LEVELS = {"token": lambda x: x, "sequence": lambda x: x.sum(), "sequence-mean": lambda x: x.mean()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("mode", "low", "high"), [("truncate", 0.0, 1.1), ("mask", 0.8, 1.2), ("reject", 0.8, 1.2)])
def test_behavior_weights_are_those_of_the_formula(level, mode, low, high):
    batch, _ = make_batch(8)
    options = PolicyLossOptions(behavior=level, behavior_mode=mode, behavior_low=low, behavior_high=high)
    expected = []
    columns = (batch.unpack(name) for name in ("loss_mask", "proximal_logprobs", "behavior_logprobs"))
    for mask, proximal, behavior in zip(*columns, strict=True):
        w = LEVELS[level]((proximal - behavior)[mask]).exp().expand(int(mask.sum()))
        inside = ((w >= low) & (w <= high)).double()
        weights = {"truncate": w.clamp(max=high), "mask": w * inside, "reject": inside}[mode]
        expected.append(torch.zeros(len(mask)).double().masked_scatter(mask, weights))
    torch.testing.assert_close(behavior_weights(batch, options), torch.cat(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_unbiased_kl_is_the_kl_and_so_is_its_gradient(estimator):
    """Summed over all tokens with the proximal policy's probabilities; without the ratio neither is, once it moved."""
    logits = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64).requires_grad_()
    proximal = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    logprobs = logits.log_softmax(0)
    estimate = (proximal * unbiased_kl(logprobs, proximal.log(), reference, estimator)).sum()
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    (got,), (expected,) = (torch.autograd.grad(x, logits, retain_graph=True) for x in (estimate, exact))
    torch.testing.assert_close(estimate, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
    biased = (proximal * kl_estimate(logprobs, reference, estimator)).sum()
    assert abs(biased.item() - exact.item()) > 0.01
