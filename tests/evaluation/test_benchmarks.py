import csv
import json
from pathlib import Path

import pytest

from areal_mega.config.command_line import parse
from areal_mega.config.errors import UserError
from areal_mega.data import Prompt
from areal_mega.evaluation.benchmarks import BENCHMARKS, read_problems, vote

SHARED = Path(__file__).parents[3] / "shared" / "data"


class Characters:
    """As much of a tokenizer as reading takes: one token a character."""

    chat_template, bos_token, eos_token_id = "yes", None, 0

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(self, messages, **_):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)


def options(*overrides):
    return parse("evaluate", ["model.path=none", *overrides])


def test_gpqa_is_shuffled_the_same_way_every_time_and_its_right_letters_are_right(tmp_path):
    with open(tmp_path / "gpqa_diamond.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)), "Record ID"])
        rows.writerows(
            [f"Which of {i}?", f"right {i}", f"bad {i}", "worse", "worst, with a comma", i] for i in range(40)
        )
    given = options(f"data.folder={tmp_path}")
    problems = read_problems("gpqa-diamond", given, Characters(), tmp_path)
    assert {p.answer for p in problems.prompts} == set("ABCD")
    for number, prompt in enumerate(problems.prompts):
        assert prompt.metadata["choices"]["ABCD".index(prompt.answer)] == f"right {number}"
        assert f"\n{prompt.answer}. right {number}\n" in prompt.text
        assert prompt.text.endswith("\\boxed{}.")
    again = read_problems("gpqa-diamond", given, Characters(), tmp_path)
    assert again.prompts == problems.prompts


@pytest.mark.parametrize("name", ["aime24", "gsm8k", "math-500"])
def test_shared_benchmarks_are_read(name, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    problems = read_problems(name, options(f"data.folder={SHARED}", "data.problems=30"), Characters(), tmp_path)
    assert len(problems.prompts) == 30 and problems.reward.name == BENCHMARKS[name].verifier


def test_amc_answers_are_numbers(tmp_path):
    (tmp_path / "amc23.jsonl").write_text(json.dumps({"question": "1+26?", "answer": 27.0, "id": 0}))
    (prompt,) = read_problems("amc23", options(f"data.folder={tmp_path}"), Characters(), tmp_path).prompts
    assert prompt.answer == "27"


def test_reasoning_gym_problems_are_made_from_the_seed(tmp_path):
    given = options("data.problems=7", "seed=3")
    problems = read_problems("reasoning-gym:gcd", given, Characters(), tmp_path)
    assert len(problems.prompts) == 7 and problems.reward.name == "reasoning_gym"
    assert problems.prompts == read_problems("reasoning-gym:gcd", given, Characters(), tmp_path).prompts
    with pytest.raises(UserError, match="no such task"):
        read_problems("reasoning-gym:no", given, Characters(), tmp_path)


def test_a_file_is_a_benchmark_and_anything_else_an_error(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": "2+2=", "answer": "4"}))
    problems = read_problems(str(tmp_path / "mine.jsonl"), options("reward.name=exact_match"), Characters(), tmp_path)
    assert problems.prompts[0].text == "<user>2+2=" and problems.reward.name == "exact_match"
    with pytest.raises(UserError, match="aime42, which is neither a file nor one of aime24"):
        read_problems("aime42", options(), Characters(), tmp_path)


def test_a_base_model_is_not_asked_in_a_chat_without_saying_so(tmp_path):
    base = Characters()
    base.chat_template = None
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps({"question": "2+2?", "answer": "#### 4"}))
    with pytest.raises(UserError, match=r"set data.prompt_type"):
        read_problems("gsm8k", options(f"data.folder={tmp_path}"), base, tmp_path)
    plain = options(f"data.folder={tmp_path}", "data.prompt_type=plain")
    assert read_problems("gsm8k", plain, base, tmp_path).prompts[0].text == "2+2?"


def test_what_an_answer_votes_for():
    prompt = Prompt("1", [], "", "4", {"choices": ["four", "five"]})
    assert vote(r"so \boxed{ 1 +  2 }", prompt, "math") == "1 + 2"
    assert vote("The answer is (B).", prompt, "choice") == "B"
    assert vote("<think>7</think> <answer> 12 </answer>", prompt, "reasoning_gym") == "12"
    assert vote("", prompt, "math") is None
    assert vote("```python\nprint(1)\n```", prompt, "code") is None
