"""Shares of equal work, against loops and against dealing sequences out."""

import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.data.mini_batches import mini_batches
from areal_mega.policy.work import imbalance, sequence_work
from areal_mega.trainers.exchange import balance_metrics

DENSE = SimpleNamespace(
    hidden_size=1536,
    num_attention_heads=12,
    num_key_value_heads=2,
    head_dim=128,
    num_hidden_layers=28,
    intermediate_size=8960,
    vocab_size=151936,
)
EXPERTS = SimpleNamespace(**{**vars(DENSE), "num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1024})


def multiplications(hf, length):
    """Token by token, layer by layer; token t attends to itself and the t before it."""
    experts = getattr(hf, "num_experts_per_tok", 1)
    width = getattr(hf, "moe_intermediate_size", hf.intermediate_size)
    q, kv = hf.num_attention_heads * hf.head_dim, hf.num_key_value_heads * hf.head_dim
    total = attended = 0
    for t in range(length):
        for _ in range(hf.num_hidden_layers):
            total += hf.hidden_size * q + 2 * hf.hidden_size * kv + q * hf.hidden_size
            for _ in range(experts):
                total += 2 * hf.hidden_size * width + width * hf.hidden_size
            for _ in range(hf.num_attention_heads):
                attended += 2 * hf.head_dim * (t + 1)  # scores, and the sum of values
        total += hf.hidden_size * hf.vocab_size
    return total, attended


@pytest.mark.parametrize("hf", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_work_is_what_is_multiplied_in_units_of_a_token(hf):
    token, _ = multiplications(hf, 1)
    for length in (1, 50, 600):
        matrices, attention = multiplications(hf, length)
        # The diagonal of attention, half a token of L, is left out.
        assert sequence_work(hf, [length]) == [pytest.approx((matrices + attention) / token, abs=0.51 + length / 5000)]


def test_in_a_long_sequence_attention_weighs_as_much_as_all_else():
    short, long = sequence_work(DENSE, [1000, 32000])
    assert short < 1.05 * 1000 and long > 1.8 * 32000


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99), st.randoms())
def test_imbalance_is_the_time_that_ranks_wait_for_the_slowest(count, ranks, seed, rng):
    work = [rng.randint(1, 1000) for _ in range(count * ranks * 3)]
    plan = mini_batches(work, count, ranks, seed)
    clock = busy = 0.0
    for mini_batch in plan:
        ends = [clock + sum(work[i] for i in share) for share in mini_batch]
        busy += sum(end - clock for end in ends)
        clock = max(ends)
    assert imbalance(work, plan) == pytest.approx(clock * ranks / busy)


@pytest.mark.parametrize(("ranks", "sequences", "before"), [(4, 512, 1.05), (32, 512, 1.4), (32, 8192, 1.05)])
def test_long_tailed_lengths_are_balanced(ranks, sequences, before):
    draw = random.Random(3)
    lengths = [min(32768, 256 + round(draw.lognormvariate(8.5, 1.0))) for _ in range(sequences)]
    found = balance_metrics(sequence_work(DENSE, lengths), 1, ranks, seed=1)
    assert found["balance/before"] > before and found["balance/after"] < 1.01


def test_work_is_balanced_better_than_tokens():
    draw = random.Random(4)
    lengths = [min(32768, 256 + round(draw.lognormvariate(8.5, 1.0))) for _ in range(512)]
    work = sequence_work(DENSE, lengths)
    by_tokens, by_work = (imbalance(work, mini_batches(cost, 1, 32, 1)) for cost in (lengths, work))
    assert by_work < by_tokens - 0.003
