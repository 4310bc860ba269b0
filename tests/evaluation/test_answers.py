import json
from dataclasses import replace

import pytest

from areal_mega.config.errors import UserError
from areal_mega.config.options import EvaluateOptions, ModelOptions
from areal_mega.data import Prompt
from areal_mega.evaluation.answers import Answer, AnswerFile, problem_key
from areal_mega.evaluation.results import powers_of_two, result_of


def answer(problem="0-x", correct=True, **more):
    fields = {"response": "4", "length": 3, "truncated": False, "failed": False, "vote": "4"}
    return Answer("sums", problem, correct=correct, **(fields | more))


@pytest.fixture
def options(tmp_path):
    (tmp_path / "model").mkdir()
    return EvaluateOptions(model=ModelOptions(path=str(tmp_path / "model")))


def test_answers_are_there_again_and_half_a_line_is_dropped(tmp_path, options):
    file = AnswerFile(tmp_path / "out", options)
    file.add([answer(), answer(correct=False), answer("1-y")])
    file.close()
    with open(file.path, "ab") as lines:
        lines.write(b'{"benchmark": "sums", "prob')
    again = AnswerFile(tmp_path / "out", options)
    assert len(again) == 3
    assert [a.correct for a in again.of("sums", "0-x")] == [True, False]
    again.add([answer("2-z")])
    again.close()
    assert [json.loads(line)["problem"] for line in file.path.read_text().splitlines()] == ["0-x", "0-x", "1-y", "2-z"]


def test_other_options_need_another_folder_but_more_samples_do_not(tmp_path, options):
    AnswerFile(tmp_path / "out", options).close()
    AnswerFile(
        tmp_path / "out",
        replace(options, benchmarks=["more"], rollout=replace(options.rollout, samples_per_prompt=64)),
    ).close()
    with pytest.raises(UserError, match="another rollout.temperature; set output"):
        AnswerFile(tmp_path / "out", replace(options, rollout=replace(options.rollout, temperature=1.0)))
    (tmp_path / "model" / "model.safetensors").write_text("new weights")
    with pytest.raises(UserError, match=r"weights.model.safetensors"):
        AnswerFile(tmp_path / "out", options)


def test_a_changed_problem_is_another_problem():
    prompt = Prompt("1", [1], "2+2=", "4")
    assert problem_key(0, prompt) == problem_key(0, Prompt("other", [2], "2+2=", "4"))
    others = [replace(prompt, text="2+3="), replace(prompt, answer="5"), replace(prompt, metadata={"choices": ["a"]})]
    assert len({problem_key(0, p) for p in [prompt, *others]} | {problem_key(1, prompt)}) == 5


def test_result_by_hand():
    problems = [
        [
            answer(),
            answer(),
            answer(correct=False, vote="5"),
            answer(correct=False, vote="5", truncated=True, length=9),
        ],
        [answer(correct=False, vote=None), answer(correct=False, vote="7"), answer(), answer(correct=False, vote="7")],
    ]
    result = result_of(problems, [1, 2, 4], 0.95)
    assert (result.n_problems, result.n_samples, result.pass_at_1) == (2, 4, 0.375)
    assert result.pass_at_k == pytest.approx({"1": 0.375, "2": (5 / 6 + 1 / 2) / 2, "4": 1.0})
    assert result.majority_at_k["4"] == pytest.approx((1 / 2 + 0) / 2)
    assert (result.mean_length, result.truncated, result.failed) == (pytest.approx(30 / 8), 0.125, 0.0)
    assert result_of([[answer(vote=None, correct=False)]], [1], 0.95).majority_at_k is None


def test_powers_of_two():
    assert powers_of_two(1) == [1]
    assert powers_of_two(8) == [1, 2, 4, 8]
    assert powers_of_two(12) == [1, 2, 4, 8, 12]
