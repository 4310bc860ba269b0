"""Engines die while they generate: the run goes on, and each sample is trained on once, of weights it may be of."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

KILLER = Path(__file__).with_name("kill_engines.py")
PROMPTS, SAMPLES = 12, 8  # of a batch
STALENESS = {"sync": 0, "async": 2}
STEPS = int(os.environ.get("AREAL_MEGA_STEPS", "0"))  # of the long form, in which one is killed every 20 seconds

pytestmark = [pytest.mark.distributed, pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def seen(start, ppo_arguments, tmp_path, monkeypatch):
    """Trains while engines are killed; what the main rank saw."""

    def run(kills, mode, engines, steps, *more):
        monkeypatch.setenv("KILLS", json.dumps(kills))
        program = start(
            KILLER,
            *ppo_arguments(
                "+algorithm=grpo", f"rollout.mode={mode}", "rollout.max_staleness=2", f"rollout.engines={engines}",
                f"rollout.prompts_per_step={PROMPTS}", f"rollout.samples_per_prompt={SAMPLES}",
                "rollout.max_new_tokens=100", f"steps={steps}", "evaluation.every=0", "save=false", *more,
            ),
        )  # fmt: skip
        assert program.wait(1800) == 0, program.output
        program.assert_nothing_left()
        found = json.loads((tmp_path / "out" / "latest" / "seen.json").read_text())
        assert len(found["batches"]) == steps
        assert f"engine {found['killed'][0][1]} is started again: " in program.output
        return found

    return run


def assert_each_sample_is_trained_on_once(found, mode):
    """Places of the stream are its prompts, which are shuffled in each pass over all 64."""
    drawn = Counter()
    for number, batch in enumerate(found["batches"]):
        assert batch["version"] == number
        assert Counter(group for _, group, *_ in batch["samples"]) == dict.fromkeys(range(PROMPTS), SAMPLES)
        assert len({(name, group) for name, group, *_ in batch["samples"]}) == PROMPTS
        for _, _, versions, tokens in batch["samples"]:
            assert number - STALENESS[mode] <= versions[0] and versions[-1] <= number and tokens > 0
        drawn.update(name for name, *_ in batch["samples"])
    position, *pending = found["batches"][-1]["place"]
    assert position - len(pending) == len(found["batches"]) * PROMPTS
    assert sum(drawn.values()) == len(found["batches"]) * PROMPTS * SAMPLES
    if not pending:
        passes, rest = divmod(position, 64)
        assert sorted(set(drawn.values())) == [passes * SAMPLES, (passes + 1) * SAMPLES][passes == 0 : 2 if rest else 1]


@pytest.mark.parametrize(
    ("mode", "engines", "kills"),
    [("sync", 2, [[1, [1]], [2, [0, 1]]]), ("async", 1, [[1, [0]]])],
    ids=["sync, one of two and then both", "async, the only one"],
)
def test_an_engine_that_dies_while_it_generates_is_started_again(seen, mode, engines, kills):
    found = seen(kills, mode, engines, 4)
    assert_each_sample_is_trained_on_once(found, mode)
    assert [number for _, number, _ in found["killed"]] == [number for _, numbers in kills for number in numbers]
    assert sum(batch["metrics"]["rollout/requests_resent_total"] for batch in found["batches"]) > 0
    # That the last engine died may not have been seen: the batch was nearly there.
    assert found["batches"][-1]["metrics"]["engines/restarts_total"] >= len(found["killed"]) - 1


@pytest.mark.skipif(not STEPS, reason="takes long: AREAL_MEGA_STEPS=400")
@pytest.mark.timeout(2000)
def test_engines_killed_again_and_again_lose_no_sample(seen):
    found = seen(20, "async", 2, STEPS)
    assert_each_sample_is_trained_on_once(found, "async")
