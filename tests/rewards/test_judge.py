import pytest
from problems import problem, sample

from areal_mega.config.errors import UserError
from areal_mega.config.options import VERIFIER_NAMES, RewardOptions
from areal_mega.rewards import VERIFIERS, VerifierError, check_answers, judge, reward_metrics
from areal_mega.rewards.judge import _pool
from areal_mega.rewards.registry import TASKS, load


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Verifiers of a user are found from the folder the run starts in, by its workers too: they start anew here."""
    monkeypatch.chdir(__file__.rpartition("/")[0])
    _pool.cache_clear()


def test_the_verifiers_are_the_choices():
    assert set(VERIFIER_NAMES) == set(VERIFIERS)
    assert all(callable(load(name)) for name in VERIFIERS)
    assert set(TASKS.values()) == set(VERIFIERS)


def test_rewards_follow_the_judgement():
    samples = [sample("7"), sample("8"), sample("7", finish="length")]
    judge(samples, RewardOptions(scale=5.0, wrong=-5.0, truncated=-6.0))
    assert [(s.correct, s.reward) for s in samples] == [(True, 5.0), (False, -5.0), (True, -6.0)]


def test_the_reward_is_a_weighted_sum_and_its_parts_are_metrics():
    samples = [sample(r"<think>Hm.</think> \boxed{7}"), sample(r"\boxed{7}"), sample("<think>Hm.</think> 8")]
    options = RewardOptions(name="math", scale=1, wrong=-1, extra={"think_format": 0.5, "boxed_format": -0.25})
    judge(samples, options)
    assert [s.reward for s in samples] == [1.25, 0.75, -0.5]
    assert [s.correct for s in samples] == [True, True, False]
    assert samples[1].reward_parts == {"answer": 1, "failed": 0, "math": 1, "think_format": 0, "boxed_format": 1}
    metrics = reward_metrics(samples)
    assert metrics["reward/answer"] == pytest.approx(2 / 3) and metrics["reward/think_format"] == pytest.approx(2 / 3)


def test_a_response_without_the_required_format_is_wrong():
    samples = [sample("<think>Hm.</think> 7"), sample("7")]
    judge(samples, RewardOptions(name="final_number", require=["think_format"]))
    assert [(s.correct, s.reward) for s in samples] == [(True, 1), (False, 0)]
    assert samples[1].reward_parts["final_number"] == 1 and samples[1].reward_parts["answer"] == 0


def test_the_task_of_a_problem_names_its_verifier():
    samples = [
        sample("B", "B", task="choice"),
        sample(r"\boxed{\frac12}", "0.5", task="stem"),
        sample("B", "7", task="math"),
    ]
    judge(samples, RewardOptions(name="task"))
    assert [s.correct for s in samples] == [True, True, False]
    assert set(samples[0].reward_parts) == {"answer", "failed", "choice"}


def test_a_verifier_of_the_users_own_gives_part_of_the_reward():
    samples = [sample("x"), sample("")]
    judge(samples, RewardOptions(name="own_verifiers:half", scale=2.0, wrong=1.0))
    assert [(s.correct, s.reward) for s in samples] == [(False, 1.5), (False, 1.0)]


def test_a_verifier_that_fails_everywhere_stops_the_run():
    samples = [sample("x"), sample("y")]
    with pytest.raises(VerifierError, match="none of 2 answers could be judged .*ZeroDivisionError: no luck"):
        judge(samples, RewardOptions(name="own_verifiers:broken"))
    assert samples[0].reward == 0 and samples[0].reward_parts["failed"] == 1


def test_a_verifier_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="no verifier is called 'maths'"):
        judge([sample("x")], RewardOptions(name="maths"))
    with pytest.raises(UserError, match="no_such_module:f cannot be imported"):
        load("no_such_module:f")


def test_reference_answers_without_full_reward_are_refused():
    prompts = [problem("7"), problem("apples")]
    assert check_answers(prompts, RewardOptions(name="exact_match"), "data.train") == prompts
    with pytest.raises(UserError) as error:
        check_answers(prompts, RewardOptions(name="final_number"), "data.train")
    text = str(error.value)
    assert "data.train: 1 of 2 problems" in text and "data.jsonl:1: the answer 'apples' gets 0 of 1" in text
    assert "data.unusable=skip" in text
    assert check_answers(prompts, RewardOptions(name="final_number"), "data.train", skip_unusable=True) == prompts[:1]


def test_every_solution_is_tested():
    with pytest.raises(UserError, match="1 of 1 problems"):
        check_answers([problem("7", "seven")], RewardOptions(name="final_number"), "data.train")


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("math", problem("")),
        ("choice", problem("none of them")),
        ("code", problem("print(1)", input_output={"inputs": [""], "outputs": ["2"]})),
        ("code", problem("print(1)")),
        ("reasoning_gym", problem("3", source_dataset="no_such_task")),
        ("task", problem("7", task="poetry")),
    ],
)
def test_unusable_problems_are_refused(name, prompt):
    with pytest.raises(UserError, match="1 of 1 problems do not get full reward.*\n.*data.jsonl:1"):
        check_answers([prompt], RewardOptions(name=name), "data.train")


def test_problems_without_a_stored_answer_pass():
    prompts = [problem("", source_dataset="graph_color"), problem("", input_output={"inputs": [""], "outputs": ["2"]})]
    assert check_answers(prompts[:1], RewardOptions(name="reasoning_gym"), "data.train")
    assert check_answers(prompts[1:], RewardOptions(name="code"), "data.train")


def test_an_outcome_the_workflow_knows_takes_the_place_of_the_verifier():
    known, judged = sample("no number at all", "7"), sample("7", "7")
    known.outcome = 0.25
    judge([known, judged], RewardOptions(name="final_number", scale=2.0, wrong=-1.0))

    assert (known.reward, known.correct, known.reward_parts["answer"]) == (-0.25, False, 0.25)
    assert (judged.reward, judged.correct) == (2.0, True)
