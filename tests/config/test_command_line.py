import pytest
from omegaconf import OmegaConf

from areal_mega.config.command_line import (
    PROGRAMS,
    algorithms,
    compose_config,
    experiments,
    help_text,
    parse,
    to_options,
    walk,
)
from areal_mega.config.errors import UserError


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_has_help(program):
    text = help_text(program)
    for name, field in walk(PROGRAMS[program]):
        assert len(field.metadata["help"]) > 10, name
        assert f"  {name}: " in text


def test_help_shows_types_choices_and_defaults():
    text = help_text("ppo")
    assert "  algorithm.kl_in: reward | loss = 'loss'\n" in text
    assert "  algorithm.dual_clip: float | null = null\n" in text


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes(name):
    program = experiments()[name]["program"]
    options = to_options(compose_config(program, [f"+experiment={name}"]))
    assert options.experiment == name and options.description


def test_overrides_of_nested_options_win_over_the_experiment():
    options = parse("ppo", ["+experiment=quickstart", "algorithm.epochs=3", "+rollout.sglang.log_level=info"])
    assert options.algorithm.epochs == 3
    assert options.rollout.sglang == {"log_level": "info"}
    assert options.policy.parallel.tensor == 2


def test_grpo_experiment_differs_from_its_parent_only_in_what_it_says():
    parent = parse("ppo", ["+experiment=quickstart"])
    child = parse("ppo", ["+experiment=quickstart-grpo"])
    assert (parent.algorithm.advantage, child.algorithm.advantage) == ("gae", "grpo")
    assert child.rollout == parent.rollout and child.data == parent.data


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_has_a_description_and_changes_options_of_the_algorithm_and_the_critic_only(name):
    parent, child = (
        OmegaConf.to_container(compose_config("ppo", a), resolve=False) for a in ([], [f"+algorithm={name}"])
    )
    assert len(algorithms()[name]) > 20
    assert {k for k in parent if parent[k] != child[k]} <= {"algorithm", "critic"}


def test_an_algorithm_is_laid_over_the_recipe_and_single_options_over_both():
    for arguments in (
        ["+experiment=quickstart", "+algorithm=dr-grpo"],
        ["+algorithm=dr-grpo", "+experiment=quickstart"],
    ):
        options = parse("ppo", [*arguments, "algorithm.clip_high=0.3", "rollout.max_new_tokens=24"])
        a = options.algorithm
        assert (a.advantage, a.reward_std, a.aggregation, a.aggregation_length) == ("grpo", "none", "constant", 24)
        assert (a.clip_high, a.mini_batches, options.critic.warmup_steps) == (0.3, 4, 0)


def test_algorithms_can_be_put_together():
    a = parse("ppo", ["+experiment=quickstart", "+algorithm=[grpo,icepop]"]).algorithm
    assert (a.advantage, a.behavior, a.behavior_mode, a.behavior_low) == ("grpo", "token", "mask", 0.5)


def test_a_recipe_can_name_an_algorithm_and_the_command_line_another(own_recipes):
    file = own_recipes / "experiment" / "mine.yaml"
    file.write_text(file.read_text().replace("quickstart, _self_", "quickstart, /algorithm: dapo, _self_"))
    (own_recipes / "algorithm").mkdir()
    (own_recipes / "algorithm" / "ours.yaml").write_text("# @package _global_\nalgorithm: {clip_high: 0.6}\n")
    arguments = ["+experiment=mine", f"--config-dir={own_recipes}"]
    assert parse("ppo", arguments).algorithm.overlong_buffer == 0.2
    assert parse("ppo", [*arguments, "algorithm=gspo"]).algorithm.ratio == "sequence"
    assert parse("ppo", [*arguments, "algorithm=ours"]).algorithm.clip_high == 0.6
    with pytest.raises(UserError, match="use algorithm=NAME, which takes its place"):
        parse("ppo", [*arguments, "+algorithm=gspo"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+experiment=quickstart", "+algorithm=dappo"], "Did you mean dapo?"),
        (["+experiment=quickstart", "+algorithm=[grpo,tiss]"], "Did you mean tis?"),
        (["+experiment=quickstart", "algorithm=dapo"], "use +algorithm=NAME"),
        (["+experiment=quickstrat"], "Did you mean quickstart?"),
        (["+experiment=quickstart", "algorithm.clip_hgh=0.3"], "Did you mean algorithm.clip_high?"),
        (["+experiment=quickstart", "algorithm.epochs=many"], "algorithm.epochs"),
        (["+experiment=quickstart-sft"], "a recipe for train_sft"),
        (["+experiment=quickstart", "+algorithm.clip_hgh=0.3"], "Did you mean algorithm.clip_high?"),
        (["+experiment=quickstart", "+nonsense=1"], "nonsense: there is no such option"),
        (["+experiment=quickstart", "algorithm.epochs=x"], "algorithm.epochs: Value 'x'"),
        (["+experiment=quickstart", "--verbose"], "--verbose"),
        ([], "+experiment=NAME"),
    ],
)
def test_what_does_not_exist_is_named_with_a_way_out(arguments, message):
    with pytest.raises(UserError) as error:
        parse("ppo", arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("main_rank", [True, False])
def test_list_prints_one_line_for_each_experiment_and_algorithm_on_the_main_rank(main_rank, capsys):
    with pytest.raises(SystemExit) as leave:
        parse("ppo", ["--list"], main_rank)
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert leave.value.code == 0
    assert names == ([*experiments(), *(f"+algorithm={name}" for name in algorithms())] if main_rank else [])


def test_cfg_job_prints_the_whole_resulting_config(capsys):
    with pytest.raises(SystemExit):
        parse("ppo", ["+experiment=quickstart", "seed=7", "--cfg", "job"])
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.seed == 7 and printed.policy.parallel.tensor == 2


@pytest.fixture
def own_recipes(tmp_path):
    """A folder with an experiment of the user's, whose path needs quoting."""
    folder = tmp_path / "my recipes"
    (folder / "experiment").mkdir(parents=True)
    recipe = "# @package _global_\ndefaults: [quickstart, _self_]\nexperiment: mine\ndescription: my own\nsteps: 7\n"
    (folder / "experiment" / "mine.yaml").write_text(recipe)
    return folder


@pytest.mark.parametrize("form", ["--config-dir={}", "--config-dir {}"])
def test_recipes_of_the_user_build_on_ours(own_recipes, form):
    form, *value = [part.format(own_recipes) for part in form.split()]
    options = parse("ppo", ["+experiment=mine", form, *value, "seed=3"])
    assert (options.experiment, options.steps, options.seed) == ("mine", 7, 3)
    assert options.policy.parallel.tensor == 2


def test_recipes_of_the_user_are_listed_with_ours(own_recipes, capsys):
    with pytest.raises(SystemExit):
        parse("ppo", ["--list", "--config-dir", str(own_recipes)])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert names[: len(experiments()) + 1] == sorted([*experiments(), "mine"])


def test_a_folder_of_recipes_that_cannot_be_meant_is_refused(own_recipes):
    with pytest.raises(UserError, match="--config-dir: expected a folder"):
        parse("ppo", ["+experiment=mine", "--config-dir"])
    with pytest.raises(UserError, match="expected recipes there, as .*/experiment/experiment/NAME.yaml"):
        parse("ppo", ["+experiment=mine", f"--config-dir={own_recipes / 'experiment'}"])
    (own_recipes / "experiment" / "quickstart.yaml").write_text("steps: 1\n")
    with pytest.raises(UserError, match="quickstart is one of the recipes that come with areal-mega; rename it"):
        parse("ppo", ["+experiment=quickstart", f"--config-dir={own_recipes}"])
