"""Every recipe that is for a cluster: it composes, its options agree, its layout fits its model, and it says what it
could not know."""

from dataclasses import replace
from functools import cache

import pytest
import yaml

from areal_mega.config.checks import check
from areal_mega.config.command_line import CONFIGS, experiments, parse
from areal_mega.config.divisibility import layout_problems
from areal_mega.config.errors import UserError
from areal_mega.resharding.known_models import known_model, known_name

EXPERIMENTS = experiments()
SCALES = {"ppo": "smoke", "sft": "smoke-sft", "dpo": "smoke-pairs", "reward": "smoke-pairs"}
RECIPES = [name for name in EXPERIMENTS if not name.startswith(("quickstart", "smollm2"))]


def program_of(name):
    return EXPERIMENTS[name]["program"]


@cache
def recipe_of(name):
    return parse(program_of(name), [f"+experiment={name}"])


def test_all_named_systems_have_recipes():
    assert set(EXPERIMENTS) >= {
        "boba-1.5b-8gpu", "boba-1.5b-32gpu", "boba-1.5b-128gpu", "boba-7b-32gpu", "boba-7b-128gpu", "boba-7b-zero",
        "32b", "boba-sft-32b", "deepscaler-1.5b-8k", "deepscaler-1.5b-16k", "deepscaler-1.5b-24k", "orz-7b", "orz-32b",
        "dapo-32b", "light-r1-32b-sft1", "light-r1-32b-sft2",
        "light-r1-32b-dpo", "light-r1-14b", "reinforce-pp-7b", "verl-grpo-7b",
        "qwq-two-stage-1", "qwq-two-stage-2", "qwen3-30b-a3b", "deepscaler-1.5b",
        "areal-async-1.5b", "areal-async-7b", "areal-async-14b",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_options_agree_on_the_recipes_own_ranks_and_on_no_others(name):
    options = recipe_of(name)
    ranks = options.policy.parallel.ranks
    check(options, ranks, cuda=True)
    with pytest.raises(UserError, match=r"policy.parallel.ranks=null"):
        check(options, 2 * ranks, cuda=True)


@pytest.mark.parametrize("name", RECIPES)
def test_the_layout_fits_the_model(name):
    options = recipe_of(name)
    model = known_name(options.model.path)
    if model is None:
        assert options.model.path.startswith("outputs/"), "a later stage starts from what the one before it left"
        return
    assert not list(layout_problems(vars(known_model(model)), options.policy.parallel))


@pytest.mark.parametrize("name", RECIPES)
def test_smoke_changes_sizes_only(name):
    program = program_of(name)
    recipe = recipe_of(name)
    small = parse(program, [f"+experiment={name}", f"+scale={SCALES[program]}"])
    check(small, 2, cuda=False)
    assert small.data == replace(recipe.data, curriculum=[]) and small.policy.optimizer.lr == recipe.policy.optimizer.lr
    if program == "ppo":
        changed = {key for key, value in vars(small.algorithm).items() if value != getattr(recipe.algorithm, key)}
        assert changed <= {"aggregation_length"}, "it follows rollout.max_new_tokens"
        assert small.reward.name == recipe.reward.name and small.reward.require == recipe.reward.require
        assert (small.reward.scale, small.reward.wrong) == (recipe.reward.scale, recipe.reward.wrong)
        assert (small.rollout.temperature, small.rollout.stop) == (recipe.rollout.temperature, recipe.rollout.stop)


def test_scale_is_laid_over_recipe_and_algorithm_wherever_it_stands():
    options = parse("ppo", ["+scale=smoke", "+experiment=32b", "+algorithm=vapo", "rollout.max_new_tokens=24"])
    assert (options.critic.warmup_steps, options.algorithm.critic_lambda) == (0, 1.0)
    assert (options.rollout.prompts_per_step, options.rollout.max_new_tokens) == (8, 24)


def test_the_stages_of_a_recipe_hand_their_model_on():
    for first, second in (
        ("deepscaler-1.5b-8k", "deepscaler-1.5b-16k"), ("deepscaler-1.5b-16k", "deepscaler-1.5b-24k"),
        ("light-r1-32b-sft1", "light-r1-32b-sft2"), ("light-r1-32b-sft2", "light-r1-32b-dpo"),
        ("qwq-two-stage-1", "qwq-two-stage-2"),
    ):  # fmt: skip
        before, after = (recipe_of(name) for name in (first, second))
        assert after.model.path == f"{before.output}/{before.run_name}/model"


def test_every_file_starts_with_where_it_is_from():
    for file in [*(CONFIGS / "base").glob("*.yaml"), *(CONFIGS / "experiment" / f"{name}.yaml" for name in RECIPES)]:
        package, *more = file.read_text().splitlines()
        assert package == "# @package _global_" and more[0].startswith("# "), file
        assert isinstance(yaml.safe_load(file.read_text()), dict)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [  # from what the systems published
        ("boba-7b-32gpu", (512, 16, 1024, 27648, 1.0, 4, 2e-5, 5.0, -5.0)),
        ("32b", (512, 32, 1024, 27648, 1.0, 4, 2e-5, 5.0, -5.0)),
        ("areal-async-14b", (128, 16, 1024, 27648, 1.0, 1, 2e-5, 5.0, -5.0)),
        ("boba-7b-zero", (512, 64, 2048, 16384, 1.0, 4, 1e-5, 1.0, 0.0)),
        ("deepscaler-1.5b-16k", (128, 16, 1024, 16384, 0.6, 2, 1e-6, 1.0, 0.0)),
        ("orz-32b", (128, 64, 2048, 8000, 1.0, 1, 1e-6, 1.0, 0.0)),
        ("dapo-32b", (512, 16, 2048, 20480, 1.0, 16, 1e-6, 1.0, -1.0)),
        ("light-r1-14b", (128, 8, 1024, 24000, 1.0, 1, 1e-6, 1.0, 0.0)),
        ("verl-grpo-7b", (1024, 5, 512, 512, 1.0, 4, 1e-6, 1.0, 0.0)),
        ("reinforce-pp-7b", (1024, 1, 1024, 1024, 1.0, 8, 5e-7, 1.0, 0.0)),
    ],
)
def test_published_numbers(name, numbers):
    o = recipe_of(name)
    r = o.rollout
    assert numbers == (
        r.prompts_per_step, r.samples_per_prompt, r.max_prompt_tokens, r.max_new_tokens, r.temperature,
        o.algorithm.mini_batches, o.policy.optimizer.lr, o.reward.scale, o.reward.wrong,
    )  # fmt: skip
