import os
from dataclasses import asdict

import pytest
import yaml

from areal_mega.config.errors import UserError
from areal_mega.config.options import PPOOptions
from areal_mega.runtime.run_directory import create


@pytest.fixture
def options(tmp_path):
    def options(**fields):
        made = PPOOptions(experiment="e", output=str(tmp_path / "out"), **fields)
        made.model.path, made.data.train = "model", "train.jsonl"
        return made

    return options


def test_runs_of_the_same_second_get_their_own_directories(options, tmp_path):
    made = [create(options()) for _ in range(3)]
    assert len(set(made)) == 3
    assert (tmp_path / "out" / "latest").resolve() == made[-1]


def test_the_options_are_left_in_it(options):
    chosen = options(run_name="mine", seed=7)
    assert yaml.safe_load((create(chosen) / "options.yaml").read_text()) == asdict(chosen)


def test_a_run_is_not_overwritten(options):
    create(options(run_name="mine"))
    with pytest.raises(UserError, match=r"run_name=mine: .* exists already"):
        create(options(run_name="mine"))


@pytest.mark.parametrize("name", ["latest", "group/mine", "/mine", "..", ""])
def test_a_run_name_is_one_name(options, tmp_path, name):
    with pytest.raises(UserError, match=f"run_name={name}"):
        create(options(run_name=name))
    assert not list(tmp_path.glob("out/*"))


def test_what_a_killed_run_left_is_no_obstacle(options, tmp_path):
    create(options())
    (tmp_path / "out" / f".latest-{os.getpid()}").symlink_to("gone")
    made = create(options(run_name="mine"))
    assert (tmp_path / "out" / "latest").resolve() == made
