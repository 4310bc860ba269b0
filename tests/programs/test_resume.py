"""A run that is killed at any time goes on with the same result."""

import json
import os
import signal
from contextlib import suppress

import pytest

pytestmark = [pytest.mark.distributed]


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def saved_step(run):
    """The step of the newest checkpoint; 0 without one."""
    latest = run / "checkpoints" / "latest"
    return int(latest.resolve().name.removeprefix("step-")) if latest.exists() else 0


def kill(program):
    """All at once, as when the machine goes down."""
    for pid in program.family():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    program.wait(30)
    program.assert_nothing_left()


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k} for row in rows]


@pytest.mark.timeout(1200)
def test_a_killed_sft_run_ends_like_an_uninterrupted_one(start, model_folder, data_file, tmp_path):
    """A rank dies and torchrun starts all anew; then everything dies, and the user goes on, on another layout."""
    steps = 24  # of 12 of 64 sequences: several passes

    def run(*more, **launch):
        return start(
            "tools/train_sft.py", "+experiment=quickstart-sft", f"model.path={model_folder}",
            f"data.train={data_file}", f"data.validation={data_file}", f"output={tmp_path}", f"steps={steps}",
            "sequences_per_step=12", "policy.optimizer.warmup_steps=3", "checkpoint.every=3", *more, **launch,
        )  # fmt: skip

    whole = run("run_name=whole")
    assert whole.wait(500) == 0, whole.output

    directory = tmp_path / "killed"
    killed = run("run_name=killed", restarts=1)
    killed.wait_for(lambda: saved_step(directory) > 0)
    os.kill(killed.rank(1), signal.SIGKILL)
    killed.wait_for(lambda: "resumed after step" in killed.output)
    restarted_from = int(killed.output.split("resumed after step ")[1].split()[0])
    killed.wait_for(lambda: saved_step(directory) > restarted_from)
    kill(killed)
    saved = saved_step(directory)
    assert restarted_from < saved < steps and not (directory / "summary.json").exists()

    again = run("resume=latest", "policy.parallel.tensor=2")  # without a name: the run that was started last
    assert again.wait(500) == 0, again.output
    assert f"resumed after step {saved} from" in again.output
    resumed, uninterrupted = (without_times(rows_of(tmp_path / name)) for name in ("killed", "whole"))
    assert [r["step"] for r in resumed] == list(range(1, steps + 1))
    for ours, theirs in zip(resumed, uninterrupted, strict=True):
        assert ours["sft/loss"] == pytest.approx(theirs["sft/loss"], rel=1e-6)
        assert ours == pytest.approx(theirs, rel=1e-4)  # gradient norms of another layout, after many steps
    ours, theirs = summary_of(directory), summary_of(tmp_path / "whole")
    for name in ("loss", "held_out_loss_before", "held_out_loss_after"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6)
    kept = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert kept == ["latest", f"step-{steps - 3:08}", f"step-{steps:08}"]


@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_a_killed_ppo_run_goes_on_with_the_weights_in_the_engine(start, ppo_arguments, tmp_path):
    directory = tmp_path / "out" / "mine"
    adaptive = ["use_reference=true", "kl_coef=0.05", "kl_target=1e6", "kl_horizon=16", "value_norm=0.99"]
    arguments = ppo_arguments(
        *("steps=12", "checkpoint.every=1", "evaluation.every=0", "algorithm.mini_batches=1"),
        *(f"algorithm.{option}" for option in adaptive),
    )
    killed = start("tools/train_ppo.py", *arguments, "run_name=mine")
    killed.wait_for(lambda: saved_step(directory) >= 2)
    kill(killed)
    saved = saved_step(directory)
    before = rows_of(directory)
    assert saved < 12

    again = start("tools/train_ppo.py", *arguments, f"resume={directory}")
    assert again.wait(500) == 0, again.output
    again.assert_nothing_left()
    rows = rows_of(directory)
    assert [r["step"] for r in rows] == [*range(13), 12]  # and the evaluations before and after
    kept = sum(r["step"] <= saved for r in before)
    assert rows[:kept] == before[:kept]
    steps = rows[1:-1]
    # The engine samples from the weights that were saved, exactly; and it has the number of these weights.
    assert all(r["mismatch/mean"] < 1e-6 and r["mismatch/max"] < 1e-5 for r in steps), steps
    # The schedule goes on: linear, from 2e-4 to a fifth of it.
    assert [r["policy/lr"] for r in steps] == pytest.approx([2e-4 * (1 - 0.8 * s / 12) for s in range(1, 13)])
    # The KL never comes near its target: a fifth less for each horizon of 16 samples, and nothing starts anew.
    assert [r["policy/kl_coef"] for r in steps] == pytest.approx([0.05 * 0.8**s for s in range(12)])
    summary = summary_of(directory)
    assert summary["accuracy_before"] == rows[0]["evaluation/accuracy"]
    assert summary["accuracy_after"] == rows[-1]["evaluation/accuracy"]
    answers = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert {a["when"] for a in answers} == {"before", "after"}
    trainer = json.loads((directory / "checkpoints" / "latest" / "trainer.json").read_text())
    assert trainer["step"] == 12 and trainer["progress"]["position"] == 12 * 4
    value_norm = trainer["progress"]["adaptive"]["value_norm"]
    assert value_norm["weight"] == pytest.approx(1 - 0.99**12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=latest"], "error: resume=latest: "),
        (["checkpoint.keep=0"], "checkpoint.keep=0: must be at least 1"),
    ],
)
def test_a_resume_that_cannot_be(start, ppo_arguments, arguments, message):
    program = start("tools/train_ppo.py", *ppo_arguments(*arguments))
    assert program.wait() != 0
    assert message in program.output
