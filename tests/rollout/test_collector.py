"""Batches from groups that finish in any order: what is taken, dropped, cut and drawn again."""

import asyncio
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions, SelectionOptions
from areal_mega.data import Prompt, Sample
from areal_mega.data.stream import PromptStream
from areal_mega.rollout.client import CutError, RequestCounts
from areal_mega.rollout.collector import Collector, Place, Setup
from areal_mega.rollout.selection import refusal
from areal_mega.rollout.staleness import StalenessManager

TOKENS = 3  # of each response


class Groups:
    """Makes groups without an engine: how long each takes and how it goes is a function of its place."""

    def __init__(self, ticks, outcomes):
        self.ticks, self.outcomes = ticks, outcomes
        self.version, self.run_of, self.cuts = 0, [], {}
        self.client = SimpleNamespace(
            cut=self.cut, counts=RequestCounts(), pool=SimpleNamespace(metrics=lambda: {"engines/alive": 1.0})
        )

    async def run(self, prompt, key, count, temperature, seed, max_new_tokens):
        self.run_of.append(key)
        version, cut = self.version, self.cuts.setdefault(key, asyncio.Event())
        for _ in range(self.ticks(key)):
            await asyncio.sleep(0)
            if cut.is_set():
                raise CutError
        return [
            Sample(prompt, 0, [1] * (1 + TOKENS), [False] + [True] * TOKENS, [0.0] * (1 + TOKENS),
                   [-1] + [version] * TOKENS, "stop", str(outcome))
            for outcome in self.outcomes(key)
        ]  # fmt: skip

    async def cut(self, key):
        self.cuts[key].set()
        return 11


def judge(samples):
    for sample in samples:
        sample.correct, sample.reward_parts = float(sample.text) >= 1, {"answer": float(sample.text)}


def collector_of(groups, batch=2, eta=0, place=None, spare=0, version=0, steps=None, **selection):
    prompts = [Prompt(str(i), [1], "?", "7") for i in range(1000)]
    options = RolloutOptions(prompts_per_step=batch, samples_per_prompt=2, selection=SelectionOptions(**selection))
    manager = StalenessManager(batch, eta, 1000, version, spare, steps=steps)
    setup = Setup([], None, options, (), PromptStream(prompts, False, 1), judge, manager, place or Place(), 1)
    return Collector(groups, setup)


def places(batch):
    return sorted({int(sample.prompt.id) for sample in batch.samples})


def train(groups, collector, steps, start=0):
    """The batches of so many steps."""

    async def loop():
        batches = []
        for version in range(start, start + steps):
            batches.append(await collector.take())
            await asyncio.sleep(0.002)  # training
            groups.version = version + 1
            collector.publish(version + 1)
        await collector.close()
        return batches

    return asyncio.run(loop())


def mixed_outcomes(place):
    return 1, 0


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 3))
def test_no_sample_is_too_stale_and_each_place_is_trained_on_once(seed, batch, eta):
    draw = random.Random(seed)
    ticks = [draw.choice([0, 1, 5, 40]) for _ in range(200)]
    groups = Groups(lambda place: ticks[place], mixed_outcomes)
    batches = train(groups, collector_of(groups, batch, eta), steps=6)

    assert max(b.metrics["rollout/staleness_max"] for b in batches) <= eta
    seen = [place for b in batches for place in places(b)]
    assert len(seen) == len(set(seen)) == 6 * batch
    assert all([s.group for s in b.samples] == [g for g in range(batch) for _ in range(2)] for b in batches)
    last = batches[-1].place
    assert sorted([*seen, *last.pending]) == list(range(last.position))


def test_synchronous_batches_are_the_prompts_in_their_order():
    groups = Groups(lambda place: 7 - place % 7, mixed_outcomes)
    batches = train(groups, collector_of(groups, batch=3), steps=3)
    assert [places(b) for b in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [b.place for b in batches] == [Place(3), Place(6), Place(9)]
    assert all(b.metrics["rollout/staleness_max"] == 0 == b.metrics["rollout/tokens_wasted"] for b in batches)


def test_ahead_of_training_generation_goes_on():
    groups = Groups(lambda place: 1, mixed_outcomes)
    train(groups, collector_of(groups, batch=2, eta=2), steps=2)
    assert groups.run_of == list(range(8))  # (eta + 1) batches, and one more when the first was trained on


def test_nothing_is_started_that_no_step_is_left_for():
    groups = Groups(lambda place: 1, mixed_outcomes)
    train(groups, collector_of(groups, batch=2, eta=2, steps=3), steps=3)
    assert groups.run_of == list(range(6))


def test_a_resumed_run_draws_again_what_was_under_way():
    groups = Groups(lambda place: 1, mixed_outcomes)
    collector = collector_of(groups, batch=2, place=Place(9, (3, 5, 7)), version=3)
    (first, second) = train(groups, collector, steps=2, start=3)
    assert (places(first), places(second)) == ([3, 5], [7, 9])
    assert (first.place, second.place) == (Place(9, (7,)), Place(10))


def test_groups_of_one_outcome_are_replaced_and_counted():
    groups = Groups(lambda place: 1, lambda place: (1, 0) if place % 3 == 0 else (1, 1) if place % 3 == 1 else (0, 0))
    (batch,) = train(groups, collector_of(groups, batch=2, mixed=True), steps=1)
    assert places(batch) == [0, 3]
    assert batch.place == Place(4)
    assert batch.metrics["rollout/groups_dropped_uniform"] == 2
    assert batch.metrics["rollout/tokens_wasted"] == 2 * 2 * TOKENS
    assert batch.metrics["rollout/groups_drawn"] == 4


def test_when_no_group_is_worth_training_on_the_run_stops_and_says_why():
    groups = Groups(lambda place: 1, lambda place: (0, 0))
    with pytest.raises(UserError, match=r"20 prompts were drawn for one batch.*\(uniform 20\).*max_draws"):
        train(groups, collector_of(groups, batch=2, mixed=True, max_draws=10), steps=1)


def test_the_slowest_of_too_many_are_cut_and_counted():
    groups = Groups(lambda place: 10**9 if place in (1, 4) else 1, mixed_outcomes)
    first, second = train(groups, collector_of(groups, batch=3, spare=1), steps=2)
    assert (places(first), places(second)) == ([0, 2, 3], [5, 6, 7])
    assert [b.metrics["rollout/groups_dropped_cut"] for b in (first, second)] == [1, 1]
    assert [b.metrics["rollout/tokens_wasted"] for b in (first, second)] == [11, 11]
    assert second.place == Place(8)


def test_ahead_of_training_a_straggler_is_waited_for_only_when_it_must_not_wait_longer():
    groups = Groups(lambda place: 3000 if place == 0 else 1, mixed_outcomes)
    batches = train(groups, collector_of(groups, batch=2, eta=2), steps=5)
    assert 0 in places(batches[2]) or 0 in places(batches[1])
    assert max(b.metrics["rollout/staleness_max"] for b in batches) <= 2


def test_a_failure_of_a_group_reaches_who_takes():
    groups = Groups(lambda place: 1, lambda place: [][place])
    with pytest.raises(IndexError):
        train(groups, collector_of(groups), steps=1)


@pytest.mark.parametrize(
    ("outcomes", "options", "reason"),
    [
        ((0, 0), {"mixed": True}, "uniform"),
        ((1, 1), {"mixed": True}, "uniform"),
        ((0.5, 1), {"mixed": True}, None),
        ((0, 0), {}, None),
        ((0, 0, 0, 1), {"min_success": 0.3}, "too_hard"),
        ((0, 1, 1, 1), {"max_success": 0.7}, "too_easy"),
        ((0, 1), {"min_success": 0.5, "max_success": 0.5}, None),
        ((), {}, "empty"),
    ],
)
def test_which_groups_are_left_out(outcomes, options, reason):
    prompt = Prompt("1", [1], "?", "7")
    samples = [Sample(prompt, 0, [1, 2], [False, True], [0, 0], [-1, 0], "stop", str(o)) for o in outcomes]
    judge(samples)
    assert refusal(samples, SelectionOptions(**options)) == reason
