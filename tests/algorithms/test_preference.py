"""The losses on preference pairs against slow float64 loops of the formulas, and against TRL."""

import json
import math
from pathlib import Path

import pytest
import torch
from preference_pairs import answers

from areal_mega.algorithms.preference import DPOLoss, RewardLoss
from areal_mega.data import PackedBatch

TRL = json.loads((Path(__file__).parents[1] / "trl_losses.json").read_text())["pairs"]
PROMPT = 2
KINDS = [("sigmoid", 0.0, False), ("sigmoid", 0.2, False), ("sigmoid", 0.0, True), ("ipo", 0.0, True),
         ("ipo", 0.0, False), ("nca_pair", 0.0, False)]  # fmt: skip


def batch_of(rows, **fields):
    """Answers behind a prompt, and their per-token fields, NaN in the prompts, which nothing may read."""

    def packed(values):
        return torch.cat([torch.cat([torch.full((PROMPT,), math.nan), row]) for row in values])

    sequences = [
        {"tokens": [0] * (PROMPT + len(row)), "loss_mask": [False] * PROMPT + [True] * len(row)} for row in rows
    ]
    unit = torch.arange(len(rows) // 2).repeat_interleave(2)
    batch = PackedBatch.pack(sequences, {"unit": unit, "margin": torch.zeros(len(rows))})
    batch = batch.with_fields(**{name: packed(values) for name, values in fields.items()})
    return batch.with_counts(sequences=float(len(rows)), tokens=float(sum(map(len, rows)))), packed(rows)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def dpo_by_definition(policy, reference, kind, beta, smoothing, average):
    """The mean over pairs, one after the other; by autograd-free formulas of the papers."""
    total = 0.0
    for i in range(0, len(policy), 2):
        ratios = []
        for p, r in zip(policy[i : i + 2], reference[i : i + 2], strict=True):
            ratio = sum(x - y for x, y in zip(p, r, strict=True))
            ratios.append(ratio / len(p) if average else ratio)
        won, lost = ratios
        if kind == "sigmoid":
            h = beta * (won - lost)
            total += -(1 - smoothing) * log_sigmoid(h) - smoothing * log_sigmoid(-h)
        elif kind == "ipo":
            total += (won - lost - 1 / (2 * beta)) ** 2
        else:
            total += -log_sigmoid(beta * won) - 0.5 * log_sigmoid(-beta * won) - 0.5 * log_sigmoid(-beta * lost)
    return total / (len(policy) / 2)


def slopes(function, rows, step=1e-6):
    """Central differences of a function of lists of numbers, in each number."""
    found = []
    for row in rows:
        for t in range(len(row)):
            kept = row[t]
            values = []
            for moved in (kept + step, kept - step):
                row[t] = moved
                values.append(function(rows))
            row[t] = kept
            found.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(found)


@pytest.mark.parametrize(("kind", "smoothing", "average"), KINDS)
def test_dpo_and_its_gradient_are_those_of_the_formula(kind, smoothing, average):
    rows, reference = answers(1)
    batch, policy = batch_of(rows, reference_logprobs=reference)
    policy.requires_grad_()
    loss, _ = DPOLoss(kind, 0.3, smoothing, average)(batch, {"logprobs": policy})
    loss.backward()
    numbers, others = ([[float(x) for x in row] for row in x] for x in (rows, reference))

    def definition(values):
        return dpo_by_definition(values, others, kind, 0.3, smoothing, average)

    assert loss.item() == pytest.approx(definition(numbers), rel=1e-6)
    gradient = policy.grad[batch["loss_mask"]]
    torch.testing.assert_close(gradient, slopes(definition, numbers).float(), rtol=1e-5, atol=1e-7)
    assert not policy.grad[~batch["loss_mask"]].any()


@pytest.mark.parametrize("centre", [0.0, 0.01])
def test_the_reward_loss_is_that_of_the_formula(centre):
    rewards, margins = [0.3, -0.2, 1.5, 1.5, -2.0, 0.1], [0.0, 0.5, 1.0]
    batch, values = batch_of([torch.tensor([r]) for r in rewards])
    batch = PackedBatch(
        batch.tokens, batch.cu_seqlens, batch.token_fields,
        {**batch.sequence_fields, "margin": torch.tensor(margins).repeat_interleave(2)}, batch.counts,
    )  # fmt: skip
    loss, statistics = RewardLoss(centre)(batch, {"values": values})
    pairs = list(zip(rewards[::2], rewards[1::2], margins, strict=True))
    expected = sum(-log_sigmoid(a - b - m) + centre * (a + b) ** 2 for a, b, m in pairs) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert statistics["accuracy"].item() == pytest.approx((1 + 0.5 + 0) / 3)  # equal rewards are half right
    assert statistics["margin"].item() == pytest.approx((0.5 + 0 - 2.1) / 3)


@pytest.mark.parametrize("kind", ["sigmoid", "nca_pair"])
def test_micro_batches_of_pairs_add_up(kind):
    rows, reference = answers(2)
    batch, policy = batch_of(rows, reference_logprobs=reference)
    loss_of = DPOLoss(kind, 0.3)
    whole, statistics = loss_of(batch, {"logprobs": policy})
    starts = batch.cu_seqlens.tolist()
    parts = []
    for unit in batch.units:
        span = slice(starts[unit[0]], starts[unit[-1] + 1])
        parts.append(loss_of(batch.select(unit), {"logprobs": policy[span]}))
    # A micro-batch that only keeps other ranks company has no part, of the loss or of the counts.
    filler = batch.select(batch.units[0])
    filler = filler.with_fields(loss_mask=torch.zeros_like(filler["loss_mask"]))
    parts.append(loss_of(filler, {"logprobs": torch.zeros(filler.num_tokens)}))
    assert sum(loss for loss, _ in parts).item() == pytest.approx(whole.item(), rel=1e-6)
    for name, value in statistics.items():
        assert sum(s[name] for _, s in parts).item() == pytest.approx(value.item(), rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("case", TRL["cases"])
def test_loss_and_gradient_are_those_of_trl(case):
    """Recorded from TRL's own trainers, see record_trl.py."""
    recorded = TRL["cases"][case]
    rows, reference = answers(TRL["seed"])
    if case.startswith("reward"):
        rows = [row[:1] for row in rows]
        batch, policy = batch_of(rows)
        sequences = {**batch.sequence_fields, "margin": torch.tensor(TRL["margins"]).repeat_interleave(2)}
        batch = PackedBatch(batch.tokens, batch.cu_seqlens, batch.token_fields, sequences, batch.counts)
        loss_of, name = RewardLoss(TRL["center_coef"]), "values"
    else:
        batch, policy = batch_of(rows, reference_logprobs=reference)
        kind, average = {"sigmoid_norm": ("sigmoid", True), "ipo": ("ipo", True)}.get(case, (case, False))
        loss_of, name = DPOLoss(kind, TRL["beta"], average=average), "logprobs"
    policy.requires_grad_()
    loss, statistics = loss_of(batch, {name: policy})
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-6)
    torch.testing.assert_close(
        policy.grad[batch["loss_mask"]], torch.tensor(recorded["gradient"]), rtol=1e-5, atol=1e-7
    )
    if case not in ("ipo", "sigmoid_norm"):  # where TRL shows rewards that are not those of its loss
        assert statistics["accuracy"].item() == pytest.approx(recorded["accuracy"])
        assert statistics["margin"].item() == pytest.approx(recorded["margin"], rel=1e-5)
