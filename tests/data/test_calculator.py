import json
import random

from areal_mega.data.calculator import Product, problems, transcript
from areal_mega.rollout.tools import calculator
from areal_mega.rollout.tools.calls import find_calls


def lines(estimates, typos, seed=0):
    return list(transcript(Product(347, 829), estimates, typos, random.Random(seed)))


def test_problems_are_distinct_and_held_out_ones_are_not_trained_on():
    train, held_out = problems(seed=0, count=500, held_out=100)
    assert len(set(train)) == 500 and len(set(held_out)) == 100 and not set(train) & set(held_out)
    assert problems(seed=1, count=500, held_out=100) != (train, held_out)


def test_a_careful_pupil_calls_and_copies_the_result():
    call, copied = lines(0, 0)
    said, (made,) = find_calls(call["answer"], "json")
    assert not said and made.name == "calculator" and not made.error
    assert calculator.evaluate(**made.arguments) == Product(347, 829).answer == str(347 * 829)
    assert [m["role"] for m in copied["messages"]] == ["user", "assistant", "tool"]
    assert copied["messages"][1]["content"] == call["answer"] and copied["answer"] == str(347 * 829)


def test_an_estimate_is_no_call():
    (estimate,) = lines(1, 0)
    assert find_calls(estimate["answer"], "json")[1] == [] and estimate["answer"] == "240000"


def test_a_typo_is_in_one_digit_and_its_result_is_that_of_the_call():
    for seed in range(20):
        call, copied = lines(0, 1, seed)
        left, right = json.loads(call["answer"])["parameters"]["expression"].split(" * ")
        assert right == "829" and sum(a != b for a, b in zip(left, "347", strict=True)) == 1
        assert copied["answer"] == str(int(left) * 829)
