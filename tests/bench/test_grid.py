"""tools/grid.py: what is run, what is not run again, and the figures of it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from areal_mega.config.command_line import compose_config
from areal_mega.config.errors import UserError

ROOT = Path(__file__).parents[2]
GRIDS = sorted((ROOT / "configs" / "grid").glob("*.yaml"))


@pytest.fixture
def grid(monkeypatch):
    spec = importlib.util.spec_from_file_location("grid_tool", ROOT / "tools" / "grid.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def program(grid, monkeypatch):
    """In the place of torchrun: leaves what a run leaves, its accuracy being its seed's; seed 13 fails."""
    started = []

    def torchrun(module, *options, ranks):
        given = dict(o.split("=", 1) for o in options)
        started.append(given["run_name"])
        folder = Path(given["output"]) / given["run_name"]
        folder.mkdir(parents=True)
        if given["seed"] == "13":
            return 1
        after = int(given["seed"]) / 10
        rows = [{"step": 0, "evaluation/accuracy": 0.1}, {"step": 1}, {"step": 2, "evaluation/accuracy": after}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = {"accuracy_before": 0.1, "accuracy_after": after, "seconds_rl": 60.4}
        (folder / "summary.json").write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr(grid, "torchrun", torchrun)
    return started


def call(grid, monkeypatch, tmp_path, content, *more):
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(content))
    words = ["grid.py", str(tmp_path / "g.yaml"), "--output", str(tmp_path / "out"), *more]
    monkeypatch.setattr(sys, "argv", words)
    return grid.main()


def test_what_is_done_is_not_done_again(grid, program, monkeypatch, tmp_path):
    two = {"options": ["steps=2"], "seeds": [5, 6], "variants": {"a": None, "b": ["x=1"]}}
    assert call(grid, monkeypatch, tmp_path, two) == 0
    assert program == ["a-seed5", "b-seed5", "a-seed6", "b-seed6"]
    (tmp_path / "out" / "a-seed6" / "summary.json").unlink()  # it was interrupted
    three = {**two, "variants": {**two["variants"], "c": ["x=2"]}}
    assert call(grid, monkeypatch, tmp_path, three) == 0
    assert program[4:] == ["c-seed5", "a-seed6", "c-seed6"]
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(r["variant"], r["seed"], r["accuracy_after"]) for r in rows][:3] == [
        ("a", 5, 0.5),
        ("b", 5, 0.5),
        ("c", 5, 0.5),
    ]
    assert rows[0]["curve"] == {"0": 0.1, "2": 0.5}
    assert "| b | 5, 6 | 10.0% | 50.0%, 60.0% | 55.0% | 60, 60 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000


def test_a_run_that_fails_does_not_keep_the_others_back(grid, program, monkeypatch, tmp_path, capsys):
    assert call(grid, monkeypatch, tmp_path, {"options": ["x=1"], "seeds": [13, 5], "variants": {"a": []}}) == 1
    assert program == ["a-seed13", "a-seed5"]
    said = capsys.readouterr()
    assert "failed: a, seed 13" in said.err and "50.0%" in said.out


def test_a_grid_that_is_none_is_refused(grid, monkeypatch, tmp_path, capsys):
    assert call(grid, monkeypatch, tmp_path, {"options": ["x=1"], "seeds": [1]}) == 1
    assert "g.yaml: variants must be names with lists of options" in capsys.readouterr().err
    with pytest.raises(UserError, match="nowhere.yaml cannot be read"):
        grid.read_grid("nowhere.yaml")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_options_of_each_grid_exist(grid, path):
    for run in grid.cells(grid.read_grid(str(path)), [], Path("out")):
        assert compose_config("ppo", run.options).seed == run.seed
