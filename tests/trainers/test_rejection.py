"""Which answers rejection sampling keeps."""

import pytest

from areal_mega.config.options import KeepOptions
from areal_mega.evaluation.answers import Answer
from areal_mega.trainers.rejection import Tally, choose


def answer(text, correct=True, truncated=False):
    return Answer("data.train", "1", text, correct, len(text), truncated, False, None)


GIVEN = [answer("a long way"), answer("short"), answer(" short "), answer("wrong", correct=False),
         answer("cut", truncated=True), answer("middling")]  # fmt: skip


def texts(keep, seed="1", given=GIVEN):
    return [a.response.strip() for a in choose(given, keep, seed)]


def test_the_shortest_right_whole_answers_are_kept_once():
    assert texts(KeepOptions(answers=2, choose="shortest")) == ["short", "middling"]
    assert sorted(texts(KeepOptions(answers=1, choose="all"))) == ["a long way", "middling", "short"]


def test_random_answers_depend_on_the_seed_alone():
    keep = KeepOptions(answers=1, choose="random")
    assert texts(keep) == texts(keep)
    assert {texts(keep, seed=str(seed))[0] for seed in range(40)} == {"a long way", "short", "middling"}


@pytest.mark.parametrize(("limit", "kept"), [(0.5, 0), (0.67, 1), (1.0, 1)])
def test_prompts_that_are_too_easy_are_left_out(limit, kept):
    """Four of six answers are right and whole."""
    assert len(texts(KeepOptions(max_success=limit))) == kept


def test_the_tally():
    tally = Tally()
    for given in (GIVEN, [answer("no", correct=False)] * 6):
        tally.add(given, choose(given, KeepOptions(), "1"))
    assert tally.facts(1) == {
        "prompts": 2, "prompts_with_right_answer": 1, "prompts_kept": 1, "answers": 12, "right_answers": 4,
        "kept_answers": 1, "accuracy_of_samples": 4 / 12,
    }  # fmt: skip
