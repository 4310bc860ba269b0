"""Options of rollout that contradict each other, and those that follow from its mode."""

import pytest

from areal_mega.config.derived import derive
from areal_mega.config.options import (
    WORKFLOW_NAMES,
    AlgorithmOptions,
    CurriculumStageOptions,
    PPOOptions,
    RolloutOptions,
    SelectionOptions,
)
from areal_mega.config.rollout import rollout_problems
from areal_mega.rollout.workflows import WORKFLOWS
from areal_mega.trainers.experience import policy_loss_of


def options(selection=None, curriculum=(), algorithm=None, **rollout):
    made = PPOOptions(rollout=RolloutOptions(**rollout), algorithm=algorithm or AlgorithmOptions())
    made.rollout.selection = selection or SelectionOptions()
    made.data.curriculum = list(curriculum)
    return made


def test_the_workflows_are_the_choices():
    assert set(WORKFLOWS) == set(WORKFLOW_NAMES)


@pytest.mark.parametrize(
    "rollout",
    [
        {},
        {"workflow": "tools", "tools": ["calculator", "mine:tool"]},
        {"workflow": "multi_turn", "environment": "mine:World"},
        {"workflow": "openai", "agent": "mine:agent"},
        {"workflow": "mine:run", "tools": ["python"], "environment": "mine:World"},
    ],
)
def test_options_that_can_be_meant(rollout):
    assert list(rollout_problems(options(**rollout))) == []


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"workflow": "multiturn"}, "Did you mean multi_turn?"),
        ({"workflow": "tools", "tools": ["calculater"]}, "Did you mean calculator?"),
        ({"workflow": "tools"}, "needs rollout.tools"),
        ({"workflow": "multi_turn"}, "needs rollout.environment"),
        ({"workflow": "openai"}, "needs rollout.agent"),
        ({"tools": ["python"]}, "rollout.tools is for rollout.workflow=tools"),
        ({"workflow": "tools", "tools": ["search"]}, "set rollout.documents"),
        ({"prompts_per_step": 8, "max_running": 7}, "rollout.max_running=7 is less"),
        ({"samples_per_prompt": 1, "selection": SelectionOptions(mixed=True)}, "mixed compares samples"),
        ({"selection": SelectionOptions(min_success=0.6, max_success=0.5)}, "no group would be trained on"),
        ({"selection": SelectionOptions(oversample=12)}, "must be above oversample=12"),
        (
            {"curriculum": [CurriculumStageOptions(), CurriculumStageOptions()]},
            r"data.curriculum[0].prompts is missing",
        ),
        ({"curriculum": [CurriculumStageOptions(prompts=4)]}, "the last stage has no end"),
        ({"curriculum": [CurriculumStageOptions(max_new_tokens=9999)]}, "must be from 1 to rollout.max_new_tokens"),
    ],
)
def test_options_that_cannot(rollout, words):
    (problem,) = rollout_problems(options(**rollout))
    assert words in problem


@pytest.mark.parametrize(("mode", "eta"), [("sync", 0), ("one-step", 1), ("async", 3)])
def test_the_mode_is_a_staleness_bound(mode, eta):
    assert options(mode=mode, max_staleness=3).staleness == eta


def test_old_samples_get_their_weight_and_it_is_said():
    o = options(mode="async")
    (said,) = derive(o)
    assert "rollout.mode=async" in said and "algorithm.behavior=token" in said
    loss = policy_loss_of(o.algorithm, 0.0).options
    assert (loss.behavior, loss.behavior_mode, loss.behavior_high) == ("token", "truncate", 5.0)


@pytest.mark.parametrize(
    ("mode", "algorithm", "behavior"),
    [
        ("sync", {}, None),
        ("async", {"behavior": "none"}, None),
        ("async", {"proximal": "behavior"}, None),
        ("async", {"behavior": "sequence"}, "sequence"),
        ("one-step", {"behavior_cap": 2.0}, "token"),
    ],
)
def test_what_the_user_chose_stays(mode, algorithm, behavior):
    o = options(mode=mode, algorithm=AlgorithmOptions(**algorithm))
    assert list(derive(o)) == []
    assert policy_loss_of(o.algorithm, 0.0).options.behavior == behavior
