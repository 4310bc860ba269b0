"""A run that is killed at any time goes on with the same result."""

import json
import os
import signal

import pytest

pytestmark = [pytest.mark.distributed]


@pytest.fixture(scope="module")
def sft_arguments(model_folder, data_file):
    """Eight steps over a data set of 64 sequences: more than one pass."""

    def arguments(output, *more):
        return [
            "+experiment=quickstart-sft", f"model.path={model_folder}", f"data.train={data_file}",
            f"data.validation={data_file}", f"output={output}", "steps=8", "sequences_per_step=12",
            "policy.optimizer.warmup_steps=3", "checkpoint.every=2", *more,
        ]  # fmt: skip

    return arguments


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kill(program):
    """All at once, as when the machine goes down."""
    for pid in program.family():
        os.kill(pid, signal.SIGKILL)
    program.wait(30)
    program.assert_nothing_left()


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k} for row in rows]


def assert_same_training(resumed, uninterrupted):
    assert [r["step"] for r in resumed] == [r["step"] for r in uninterrupted]
    for ours, theirs in zip(without_times(resumed), without_times(uninterrupted), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6), (ours, theirs)


def test_a_killed_sft_run_ends_like_an_uninterrupted_one(start, sft_arguments, tmp_path):
    whole = start("tools/train_sft.py", *sft_arguments(tmp_path, "run_name=whole"))
    assert whole.wait() == 0, whole.output

    killed = start("tools/train_sft.py", *sft_arguments(tmp_path, "run_name=killed"))
    latest = tmp_path / "killed" / "checkpoints" / "latest"
    killed.wait_for(latest.exists)
    kill(killed)
    saved = int(latest.resolve().name.removeprefix("step-"))
    assert saved < 8 and not (tmp_path / "killed" / "summary.json").exists()

    # On another layout, and without a name: latest is the run that was started last.
    again = start("tools/train_sft.py", *sft_arguments(tmp_path, "resume=latest", "policy.parallel.tensor=2"))
    assert again.wait() == 0, again.output
    assert f"resumed after step {saved}" in again.output
    assert_same_training(rows_of(tmp_path / "killed"), rows_of(tmp_path / "whole"))
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("killed", "whole")]
    for name in ("loss", "held_out_loss_before", "held_out_loss_after"):
        assert summaries[0][name] == pytest.approx(summaries[1][name], rel=1e-6)
    kept = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert kept == ["latest", "step-00000006", "step-00000008"]
