"""Rejection sampling as one command: it samples, keeps, trains and counts; killed while it samples, it goes on."""

import json
import os
import signal
from contextlib import suppress

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.engine]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_killed_run_goes_on_and_learns_right_answers(start, model_folder, data_file, tmp_path):
    """A verifier that likes what a random model sometimes says: an answer with the digit that the sum begins with."""
    directory = tmp_path / "r"
    arguments = [
        "tools/rejection_sample.py", "+experiment=quickstart-rejection", f"model.path={model_folder}",
        f"data.train={data_file}", f"output={tmp_path}", "rollout.prompts_per_step=16", "rollout.samples_per_prompt=6",
        "rollout.max_new_tokens=8", "rollout.stop=['-']", "reward.name=tests.programs.verifiers:has_first_digit",
        "keep.answers=2", "keep.choose=shortest", "epochs=6", "sequences_per_step=8", "policy.optimizer.warmup_steps=2",
        "policy.optimizer.lr=3e-3",
    ]  # fmt: skip
    killed = start(*arguments, "run_name=r")
    killed.wait_for(lambda: len(lines_of(directory / "answers.jsonl")) >= 96)
    for pid in killed.family():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    killed.wait(30)
    sampled = (directory / "answers.jsonl").read_bytes()

    again = start(*arguments, f"resume={directory}")
    assert again.wait() == 0, again.output
    again.assert_nothing_left()
    answers = lines_of(directory / "answers.jsonl")
    assert (directory / "answers.jsonl").read_bytes().startswith(sampled[: sampled.rindex(b"\n") + 1])
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["prompts"] == 64 and summary["answers"] == len(answers) == 64 * 6

    right = [a for a in answers if a["correct"] and not a["truncated"]]
    assert summary["right_answers"] == len(right) > 0
    by_problem = {}
    for answer in right:
        by_problem.setdefault(answer["problem"], set()).add(" ".join(answer["response"].split()))
    assert summary["prompts_with_right_answer"] == summary["prompts_kept"] == len(by_problem)
    kept = lines_of(directory / "kept.jsonl")
    assert summary["kept_answers"] == len(kept) == sum(min(2, len(texts)) for texts in by_problem.values())
    assert {line["answer"] for line in kept} <= {a["response"] for a in right}

    rows = lines_of(directory / "metrics.jsonl")
    assert summary["steps"] == len(rows) == -(-6 * len(kept) // 8)
    assert rows[-1]["sft/loss"] < 0.9 * rows[0]["sft/loss"]
