"""The first steps of recipes, as a user tries them. Two by default; all with

RECIPES=all .venv/bin/python -m pytest tests/programs/test_recipes.py
"""

import json
import os

import pytest

from areal_mega.config.command_line import experiments

pytestmark = [pytest.mark.distributed, pytest.mark.engine]

# A critic and stop strings; experts and weights of the mismatch; SFT. Together most of what recipes use.
DEFAULT = ["orz-7b", "qwen3-30b-a3b", "boba-sft-32b"]
# qwq-two-stage-2 needs a server of the user's.
ALL = [n for n in experiments() if not n.startswith(("quickstart", "smollm2")) and n != "qwq-two-stage-2"]


@pytest.mark.parametrize("name", ALL if os.environ.get("RECIPES") == "all" else DEFAULT)
def test_first_steps(start, tmp_path, name):
    program = experiments()[name]["program"]
    scale = {"sft": "smoke-sft", "dpo": "smoke-pairs"}.get(program, "smoke")
    arguments = [f"+experiment={name}", f"+scale={scale}", f"output={tmp_path}", f"stand_ins={tmp_path / 'stand_ins'}"]
    started = start(f"tools/train_{program}.py", *arguments)
    assert started.wait() == 0, started.output
    started.assert_nothing_left()
    latest = tmp_path / "latest"
    rows = [json.loads(line) for line in (latest / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} >= {1, 2}
    assert json.loads((latest / "summary.json").read_text())["experiment"] == name
    if program != "ppo":
        assert rows[1][f"{program}/loss"] < rows[0][f"{program}/loss"]
        return
    mismatches = [row["mismatch/mean"] for row in rows if "mismatch/mean" in row]
    # The engine has the weights that were trained, the second time, too; asynchronous samples are of the first then.
    assert len(mismatches) == (1 if "async" in name else 2) and max(mismatches) < 1e-5
