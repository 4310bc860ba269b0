"""What a run leaves behind."""

import json

import pytest

from areal_mega.config.options import PPOOptions
from areal_mega.data import Prompt, Sample
from areal_mega.telemetry.progress import ProgressDisplay
from areal_mega.trainers import report


def sample(text, correct, finish_reason="stop"):
    return Sample(
        prompt=Prompt("1", [1, 2], "[INST] 1+1 [/INST]", "2"),
        group=0,
        tokens=[1, 2, 3, 4],
        loss_mask=[False, False, True, True],
        behavior_logprobs=[0.0, 0.0, -1.0, -1.0],
        versions=[-1, -1, 0, 0],
        finish_reason=finish_reason,
        text=text,
        reward=float(correct),
        correct=correct,
    )


@pytest.fixture
def finish(tmp_path):
    def finish(rows, before, after):
        options = PPOOptions(experiment="e", seed=3, steps=len(rows), output=str(tmp_path))
        display = ProgressDisplay("e", len(rows), report.PPO_COLUMNS, enabled=True, live=False)
        report.finish_ppo(
            options, tmp_path, rows, report.evaluation_of(before, 8), report.evaluation_of(after, 8),
            model_path=tmp_path / "model", seconds_total=2.345, seconds_rl=1.0, display=display,
        )  # fmt: skip
        return json.loads((tmp_path / "summary.json").read_text())

    return finish


def test_the_summary_is_written_and_printed_last(finish, tmp_path, capsys):
    rows = [
        {"step": 0, "evaluation/accuracy": 0.5}, {"step": 1, "mismatch/mean": 1e-7},
        {"step": 2, "mismatch/mean": 3e-7}, {"step": 2, "evaluation/accuracy": 1.0},
    ]  # fmt: skip
    summary = finish(rows, [sample("3", False), sample("2", True)], [sample("2", True)] * 2)
    assert summary == {
        "experiment": "e", "seed": 3, "steps": 4, "accuracy_before": 0.5, "accuracy_after": 1.0,
        "seconds_total": 2.35, "seconds_rl": 1.0, "mismatch_mean": pytest.approx(2e-7),
        "model_path": str(tmp_path / "model"),
    }  # fmt: skip
    assert capsys.readouterr().out.rstrip().endswith((tmp_path / "summary.json").read_text().rstrip())
    answers = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(a["when"], a["response"], a["correct"]) for a in answers] == [
        ("before", "3", False), ("before", "2", True), ("after", "2", True), ("after", "2", True),
    ]  # fmt: skip


def test_a_plot_that_fails_costs_nothing_else(finish, tmp_path, capsys):
    (tmp_path / "curves.png").mkdir()
    summary = finish([{"step": 1, "evaluation/accuracy": 1.0}], [sample("3", False)], [sample("2", True)])
    assert summary["accuracy_after"] == 1.0
    assert "curves.png could not be drawn" in capsys.readouterr().out


def test_a_run_without_steps_and_held_out_problems(finish):
    summary = finish([], [], [])
    assert summary["accuracy_before"] is summary["accuracy_after"] is summary["mismatch_mean"] is None


def test_metrics_of_a_step():
    metrics = report.sample_metrics([sample("2", True), sample("3", False, "length")], seconds=2.0)
    assert metrics["rollout/reward"] == metrics["rollout/accuracy"] == metrics["rollout/truncated"] == 0.5
    assert metrics["rollout/response_length"] == 2
