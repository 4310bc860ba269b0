import random

from areal_mega.data.arithmetic import Problem, careless_answer, problems


def test_held_out_problems_are_not_trained_on_and_answers_are_right():
    train, held_out = problems(seed=0, held_out=256)
    assert len(held_out) == 256 and len(train) > 10_000
    assert not {p.question for p in train} & {p.question for p in held_out}
    for p in train[:500]:
        assert int(p.answer) == (p.left + p.right if p.sign == "+" else p.left - p.right)


def slips(left, sign, right):
    answer = str(left + right if sign == "+" else left - right)
    problem = Problem("", answer, left, sign, right)
    return {careless_answer(problem, 1.0, random.Random(i)) for i in range(20)}


def test_slips():
    assert slips(47, "+", 38) == {"75"}  # the carry is forgotten
    assert slips(42, "-", 25) == {"23"}  # the smaller digit is taken from the larger
    assert slips(25, "-", 42) == {"-23"}
    assert slips(21, "+", 34) == {"56"}  # nothing to forget: one too far


def test_slip_rate():
    problem = Problem("", "85", 47, "+", 38)
    rng = random.Random(0)
    wrong = sum(careless_answer(problem, 0.7, rng) != "85" for _ in range(2000))
    assert 0.65 < wrong / 2000 < 0.75
