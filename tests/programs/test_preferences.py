"""DPO and the reward model as whole programs: they learn, what they leave can be used, and a killed run goes on."""

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from areal_mega.config.options import HttpOptions, RewardOptions
from areal_mega.data import Prompt
from areal_mega.rewards.remote import http_scores

pytestmark = [pytest.mark.distributed]


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """Sums, of which the answers with a digit below five were found better."""
    rng = random.Random(0)
    lines = []
    for _ in range(128):
        asked = f"{rng.randrange(10)}+{rng.randrange(10)}="
        good, bad = "".join(rng.choices("01234", k=3)), "".join(rng.choices("56789", k=2))
        lines.append({"prompt": asked, "chosen": good, "rejected": bad, "margin": 0.5})
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def arguments(name, model, pairs, output, *more):
    return [
        f"tools/train_{name}.py", f"+experiment=quickstart-{name}", f"model.path={model}", f"data.train={pairs}",
        f"data.validation={pairs}", f"output={output}", "pairs_per_step=16", "policy.optimizer.warmup_steps=2",
        "policy.optimizer.lr=3e-3", *more,
    ]  # fmt: skip


def test_dpo_learns_in_any_layout(start, model_folder, pairs_file, tmp_path):
    """The second run is cut in another way, with small micro-batches, and goes on from the first's middle."""

    def run(*more):
        program = start(*arguments("dpo", model_folder, pairs_file, tmp_path, "steps=12", "checkpoint.every=6", *more))
        assert program.wait() == 0, program.output
        return program

    run("run_name=whole", "checkpoint.keep=9")
    whole = tmp_path / "whole"
    summary, rows = summary_of(whole), rows_of(whole)
    assert summary["held_out_accuracy_before"] == 0.5 and summary["held_out_margin_before"] == 0.0
    assert summary["held_out_accuracy_after"] > 0.9
    assert rows[0]["dpo/loss"] == pytest.approx(0.693147, rel=1e-5)
    assert rows[-1]["dpo/chosen_reward"] > rows[-1]["dpo/rejected_reward"]
    assert AutoModelForCausalLM.from_pretrained(summary["model_path"]).config.vocab_size == 17

    again = run("resume=" + str(whole / "checkpoints" / "step-00000006"), "policy.parallel.tensor=2",
                "max_tokens=40", "policy.max_tokens_per_micro_batch=82")  # fmt: skip
    assert "resumed after step 6" in again.output
    for ours, theirs in zip(rows_of(whole), rows, strict=True):
        for name in ("dpo/loss", "dpo/accuracy", "dpo/margin", "dpo/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-5), name
    assert summary_of(whole)["held_out_loss_after"] == pytest.approx(summary["held_out_loss_after"], rel=1e-3)


@pytest.mark.timeout(900)
def test_a_reward_model_learns_is_loaded_and_serves(start, model_folder, pairs_file, tmp_path):
    program = start(*arguments("reward", model_folder, pairs_file, tmp_path, "run_name=r", "steps=30",
                               "use_margin=true", "policy.parallel.tensor=2"))  # fmt: skip
    assert program.wait() == 0, program.output
    summary = summary_of(tmp_path / "r")
    assert summary["held_out_accuracy_before"] < 0.9 < summary["held_out_accuracy_after"]

    # transformers finds rewards of the same accuracy and margin in the folder, after the token that ends an answer.
    folder = summary["model_path"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lines = [json.loads(line) for line in pairs_file.read_text().splitlines()]

    def reward(asked, answer):
        text = f"<user>{asked}<assistant>{answer}<end>"
        with torch.inference_mode():
            return model(torch.tensor([tokenizer(text)["input_ids"]])).logits.item()

    rewards = [(reward(x["prompt"], x["chosen"]), reward(x["prompt"], x["rejected"])) for x in lines]
    assert sum(a > b for a, b in rewards) / len(lines) == pytest.approx(summary["held_out_accuracy_after"])
    margin = sum(a - b for a, b in rewards) / len(lines)
    assert margin == pytest.approx(summary["held_out_margin_after"], rel=1e-5)

    # Behind HTTP it is a reward; several requests at once are scored together.
    server = start("tools/serve_reward.py", f"model.path={folder}", "port=0", ranks=None)
    server.wait_for(lambda: "reward.http.url=" in server.output)
    url = server.output.split("reward.http.url=")[1].split()[0]
    asked = [(x["chosen"], Prompt("1", [0], f"<user>{x['prompt']}<assistant>", "7")) for x in lines[:8]]
    scores = http_scores(asked, RewardOptions(http=HttpOptions(url=url)).http)
    assert [s.value for s in scores] == pytest.approx([a for a, _ in rewards[:8]], rel=1e-5, abs=1e-6)

    # And it is where the next one, or a critic, may begin.
    program = start(*arguments("reward", folder, pairs_file, tmp_path, "run_name=next", "steps=1",
                               "policy.optimizer.warmup_steps=0", "policy.optimizer.schedule=constant"))  # fmt: skip
    assert program.wait() == 0, program.output
    before = summary_of(tmp_path / "next")["held_out_margin_before"]
    assert before == pytest.approx(summary["held_out_margin_after"], rel=1e-5)
