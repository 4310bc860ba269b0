"""Steps on paper against what can be calculated by hand, and against published ratios."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import cycle, repeat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_mega.config.errors import UserError
from areal_mega.resharding.known_models import known_model
from areal_mega.rollout.simulation import GPUS, Cluster, Costs, log_normal, read_lengths, simulate
from areal_mega.rollout.simulation.engine import SimulatedEngine

COSTS = Costs.of(known_model("qwen2.5-1.5b"), GPUS["h800"])
SMALL = Cluster(COSTS, engines=4, trainers=2, eta=0, prompts=8, samples=2, prompt_tokens=100, mean_length=1000)


def decoding(sequences, prompt, length):
    """Token by token."""
    return sum(COSTS.decode(sequences, sequences * (prompt + t)) for t in range(length))


def test_costs_are_those_of_the_roofline():
    assert COSTS.parameters == pytest.approx(1.54e9, rel=0.01) and COSTS.active == COSTS.parameters
    assert COSTS.cache_bytes == 2 * 28 * 2 * 128 * 2
    weights = 2 * COSTS.parameters / (3.35e12 * 0.6)
    assert COSTS.decode(1, 0) == pytest.approx(0.006 + weights)
    assert replace(COSTS, tensor=2).decode(1, 0) == pytest.approx(0.006 + weights / 2)
    no_attention = replace(COSTS, attention=0)
    assert no_attention.train([10, 20], gpus=3) == pytest.approx(4 * 2 * COSTS.active * 30 / (3 * 989e12 * 0.4))
    assert no_attention.train([30], 3, recompute=False) == pytest.approx(0.75 * no_attention.train([30], 3))


def test_only_chosen_experts_compute():
    costs = Costs.of(known_model("qwen3-30b-a3b"), GPUS["h800"])
    assert costs.parameters == pytest.approx(30.5e9, rel=0.01) and costs.active == pytest.approx(3.3e9, rel=0.03)


def test_an_engine_takes_the_time_of_its_tokens():
    engine = SimulatedEngine(COSTS, running=2)
    for name, length in (("a", 500), ("b", 2000), ("c", 300)):
        engine.start(name, 100, length)
    assert engine.end() == "a"  # then c, which waited, runs beside b
    assert engine.now == pytest.approx(decoding(2, 100, 500), rel=1e-3)
    assert engine.end() == "c" and engine.end() == "b"
    together = decoding(2, 100, 500) + sum(COSTS.decode(2, 700 + 2 * t) for t in range(300))
    alone = sum(COSTS.decode(1, 900 + t) for t in range(1200))
    assert engine.now == engine.busy == pytest.approx(together + alone, rel=1e-3)
    assert engine.next_end == float("inf") and engine.load == 0


def test_a_synchronous_step_is_generation_then_training_then_the_update():
    outcome = simulate(SMALL, repeat(1000), steps=3)
    training = COSTS.train([1100] * 16, gpus=2)
    generation = decoding(4, 100, 1000)  # 8 groups of 2 on 4 engines
    assert outcome.step_seconds == pytest.approx(generation + training + SMALL.update, rel=1e-3)
    assert outcome.tokens_per_second * outcome.step_seconds == pytest.approx(16 * 1100)
    assert outcome.trainer_idle == pytest.approx(1 - training / outcome.step_seconds)
    assert outcome.engine_idle == pytest.approx(1 - generation / outcome.step_seconds, rel=1e-3)
    assert outcome.staleness_max == 0


@settings(max_examples=40, deadline=None)
@given(eta=st.integers(0, 5), seed=st.integers(0, 1000), spread=st.floats(0, 2))
def test_no_sample_is_older_than_eta(eta, seed, spread):
    outcome = simulate(replace(SMALL, eta=eta), log_normal(1000, spread, 8000, seed), steps=6)
    assert 0 <= outcome.staleness_mean <= outcome.staleness_max <= eta
    assert 0 <= outcome.trainer_idle < 1 and 0 <= outcome.engine_idle < 1


def test_engines_wait_for_the_tail_only_where_training_does():
    def idle(eta, lengths):
        return simulate(replace(SMALL, eta=eta), cycle(lengths), 8).engine_idle

    even, tailed = [1500] * 8, [500] * 7 + [8500]
    assert idle(0, tailed) > idle(0, even) + 0.1
    assert idle(4, tailed) < idle(0, tailed) - 0.2


def test_lengths_of_a_trace(tmp_path):
    (tmp_path / "trace").write_text('7\n{"length": 9}\n')
    lengths = read_lengths(str(tmp_path / "trace"), seed=0)
    assert {next(lengths) for _ in range(100)} == {7, 9}
    (tmp_path / "bad").write_text("7\nnine\n")
    with pytest.raises(UserError, match=r"bad:2: expected a whole number above 0"):
        read_lengths(str(tmp_path / "bad"), seed=0)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_lengths(str(tmp_path / "none"), seed=0)


def plan(*arguments):
    tool = Path(__file__).parents[2] / "tools" / "plan.py"
    command = [sys.executable, "-P", str(tool), "simulate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_published_runs(tmp_path):
    """The simulation is not fitted to the ratios: 512 x 16 samples and 3/4 of the GPUs, as they were run."""
    done = plan("--published", "--steps", 2, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(Path(tmp_path / "found.json").read_text())
    assert [row["published_ratio"] for row in rows] == [2.77, 2.27, 1.64]
    for row in rows:
        assert row["ratio_in_turns"] == pytest.approx(row["published_ratio"], rel=0.2)
    ratios = [row["ratio_in_turns"] for row in rows]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs either --model or --published"),
        (["--model", "qwen2.5-1.5b", "--gpus", "2", "--tensor", "2"], "both sides need some"),
        (["--model", "qwen2.5-72b"], "raise --tensor"),
        (["--model", "qwen2.5-7b", "--eta", "4,1"], "expected growing whole numbers"),
        (["--model", "qwen2.5-7b", "--steps", "0"], "expected a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    done = plan(*arguments)
    assert done.returncode in (1, 2) and message in done.stderr
