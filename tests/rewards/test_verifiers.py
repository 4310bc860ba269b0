import pytest

from areal_mega.config.errors import UserError
from areal_mega.config.options import RewardOptions
from areal_mega.data import Prompt, Sample
from areal_mega.rewards import check_answers, judge
from areal_mega.rewards.verifiers import exact_match, final_number


@pytest.mark.parametrize(
    ("response", "right"),
    [("17", True), (" 17\n", True), ("-17", False), ("17.", False), ("017", False), ("1 7", False), ("", False)],
)
def test_exact_match(response, right):
    assert exact_match(response, "17") is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("3 + 4 = 7", "7", True),
        ("The answer is 1,234.", "1234", True),
        ("7 or 8", "7", False),
        ("-5", "5", False),
        ("5.0", "5", True),
        ("seven", "7", False),
        ("1234", "1,234", True),
        ("so 12", "12 apples", True),
        ("12", "apples", False),
        ("(3,4)", "4", True),
        ("10-3", "3", True),
        ("9007199254740993", "9007199254740992", False),
    ],
)
def test_final_number(response, answer, right):
    assert final_number(response, answer) is right


def sample(text, finish="stop"):
    prompt = Prompt("1", [1], "?", "7")
    return Sample(prompt, 0, [1, 2], [False, True], [0.0, -1.0], [-1, 0], finish, text)


def test_rewards_follow_the_judgement():
    samples = [sample("7"), sample("8"), sample("7", "length")]
    judge(samples, RewardOptions(scale=5.0, wrong=-5.0, truncated=-6.0))
    assert [(s.correct, s.reward) for s in samples] == [(True, 5.0), (False, -5.0), (True, -6.0)]


def test_an_answer_without_a_number_is_refused_where_numbers_are_compared():
    prompts = [Prompt("1", [1], "?", "7"), Prompt("2", [1], "?", "apples")]
    check_answers(prompts, RewardOptions(name="exact_match"), "data.train")
    with pytest.raises(UserError, match="data.train: the answer 'apples' of problem 2 has no number.*exact_match"):
        check_answers(prompts, RewardOptions(name="final_number"), "data.train")
