import json
from dataclasses import replace

import pytest
import reasoning_gym
from problems import problem

from areal_mega.rewards.procedural import procedural

EASY = ["chain_sum", "gcd", "letter_counting", "spell_backward", "number_sequence", "basic_arithmetic", "syllogism"]


def entries(name, size=4):
    for item in reasoning_gym.create_dataset(name, size=size, seed=3):
        yield problem(item["answer"], text=item["question"], **item["metadata"], question=item["question"])


@pytest.mark.parametrize("name", EASY)
def test_the_stored_answer_is_right_and_others_are_not(name):
    for prompt in entries(name):
        for form in ("{}", "<answer>{}</answer>", r"so \boxed{{{}}}", "<think>hm</think>\n{}"):
            assert procedural(form.format(prompt.answer), prompt).value == 1
        assert procedural("no idea at all", prompt).value < 1
        assert procedural("", prompt).value == 0


def test_the_answer_among_others_earns_nothing():
    [prompt] = entries("chain_sum", 1)
    own = reasoning_gym.create_dataset("chain_sum", size=1, seed=3)
    assert own.score_answer(f"{prompt.answer} 5", {"answer": prompt.answer}) > 0  # why the exception is there
    assert procedural(f"{prompt.answer} 5", prompt).value == 0


def test_a_task_that_was_stored_as_json_knows_its_answer():
    for prompt in entries("rearc", 1):
        stored = json.loads(json.dumps(prompt.metadata))
        assert procedural(prompt.answer, replace(prompt, metadata=stored)).value == 1


def test_the_verifier_that_takes_any_text_is_replaced():
    for prompt in entries("game_of_life_halting"):
        assert procedural(prompt.answer, prompt).value == 1
        assert procedural({"True": "False", "False": "True"}[prompt.answer], prompt).value == 0


def test_an_answer_its_verifier_cannot_read_is_wrong():
    [prompt] = entries("prime_factorization", 1)
    said = procedural("two times three", prompt)
    assert said.value == 0 and not said.failed
