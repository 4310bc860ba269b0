import json
import shutil

import pytest
import torch
from models import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.engine]


LAYOUTS = {
    "ppo-tp2-kl-reward-two-epochs": [
        "algorithm.use_reference=true",
        "algorithm.kl_coef=0.1",
        "algorithm.kl_in=reward",
        "algorithm.kl_estimator=k1",
        "algorithm.epochs=2",
        "critic.warmup_steps=1",
    ],
    "grpo-dp2-kl-loss": [
        "policy.parallel.tensor=1",
        "algorithm.advantage=grpo",
        "algorithm.use_reference=true",
        "algorithm.kl_coef=0.1",
        "algorithm.aggregation=sequence-mean",
        "algorithm.behavior_cap=5.0",
        "rollout.temperature=0.8",
        "reward.truncated=-1",  # the random model is never right: without it the samples of a group are equal
        "telemetry.tensorboard=true",
    ],
    "remax-tp2": [
        "+algorithm=remax",
        "algorithm.use_reference=true",
        "reward.truncated=-1",
        "evaluation.keep_best=true",
    ],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_whole_run(start, ppo_arguments, model_folder, tmp_path, name):
    more = LAYOUTS[name]
    program = start("tools/train_ppo.py", *ppo_arguments(*more))
    assert program.wait() == 0, program.output
    program.assert_nothing_left()

    latest = tmp_path / "out" / "latest"
    summary = json.loads((latest / "summary.json").read_text())
    assert program.output.rstrip().endswith((latest / "summary.json").read_text().rstrip())
    assert set(summary) >= {
        "experiment", "seed", "steps", "accuracy_before", "accuracy_after", "seconds_total", "seconds_rl",
        "mismatch_mean", "model_path",
    }  # fmt: skip
    rows = [json.loads(line) for line in (latest / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 1, 1, 2, 2]
    accuracies = [r.pop("evaluation/accuracy") for r in rows if "evaluation/accuracy" in r]
    assert [accuracies[0], accuracies[-1]] == [summary["accuracy_before"], summary["accuracy_after"]]
    rows = rows[1::2]
    # The second step samples from weights that were trained and published: the engine has them exactly.
    assert all(r["mismatch/mean"] < 1e-6 and r["mismatch/max"] < 1e-5 for r in rows), rows
    assert rows[0]["policy/reference_kl"] < 1e-6
    assert rows[-1]["policy/grad_norm"] > 0
    assert (latest / "curves.png").stat().st_size > 10_000
    answers = [json.loads(line) for line in (latest / "samples.jsonl").read_text().splitlines()]
    assert {a["when"] for a in answers} == {"before", "after"}

    if "evaluation.keep_best=true" in more:
        best = json.loads((latest / "best" / "evaluation.json").read_text())
        assert best == {"step": 1 + accuracies[1:].index(max(accuracies[1:])), "accuracy": max(accuracies[1:])}
        assert AutoModelForCausalLM.from_pretrained(latest / "best").config.vocab_size == 17

    trained = AutoModelForCausalLM.from_pretrained(summary["model_path"])
    original = AutoModelForCausalLM.from_pretrained(model_folder)
    changes = [(a - b).abs().max() for a, b in zip(trained.parameters(), original.parameters(), strict=True)]
    assert all(torch.isfinite(c) for c in changes) and max(changes) > 1e-5
    assert AutoTokenizer.from_pretrained(summary["model_path"]).chat_template
    assert bool(list(latest.glob("tensorboard/events*"))) is ("telemetry.tensorboard=true" in more)


def test_sft_learns_and_saves(start, model_folder, data_file, tmp_path):
    program = start(
        "tools/train_sft.py", "+experiment=quickstart-sft", f"model.path={model_folder}",
        f"data.train={data_file}", f"data.validation={data_file}", f"output={tmp_path}", "run_name=sft",
        "steps=40", "sequences_per_step=16", "policy.parallel.tensor=2", "policy.optimizer.warmup_steps=2",
    )  # fmt: skip
    assert program.wait() == 0, program.output
    rows = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["sft/loss"] < 0.7 * rows[0]["sft/loss"]
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert summary["held_out_loss_after"] < 0.7 * summary["held_out_loss_before"]
    assert summary["held_out_loss_before"] == pytest.approx(rows[0]["sft/loss"], rel=0.1)
    assert AutoModelForCausalLM.from_pretrained(summary["model_path"]).config.vocab_size == 17


def test_a_mixture_trains_with_the_experts_that_the_engine_chose(start, ppo_arguments, model_folder, tmp_path):
    mixture = tmp_path / "mixture"
    shutil.copytree(model_folder, mixture)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    save_tiny_model(mixture, "qwen3_moe", vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=None)
    program = start(
        "tools/train_ppo.py",
        *ppo_arguments(
            f"model.path={mixture}", "policy.moe.replay=true", "policy.parallel.tensor=1", "policy.parallel.expert=2",
            "algorithm.advantage=grpo", "reward.truncated=-1", "evaluation.every=0",
        ),
    )  # fmt: skip
    assert program.wait() == 0, program.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "latest" / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if "rollout/routes_known" in r]
    assert [r["step"] for r in steps] == [1, 2]
    assert all(r["rollout/routes_known"] == 1 and r["mismatch/max"] < 1e-5 for r in steps), steps
    assert steps[-1]["policy/grad_norm"] > 0
