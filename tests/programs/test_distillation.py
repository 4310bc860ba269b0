"""On-policy distillation as a whole program: the student comes nearer to the teacher, on what it says itself."""

import json

import pytest
import torch
from models import tiny_model
from transformers import AutoTokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.engine]

SIZES = {"vocab_size": 17, "eos_token_id": 0, "bos_token_id": None}
SAYS = (3, 8)  # the digits from 0 to 4


def save_teacher(folder, tokenizer):
    """A model that learned to say five of the digits, whatever it is asked."""
    teacher = tiny_model("qwen3", **SIZES)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        tokens = torch.randint(1, 17, (16, 12), generator=generator)
        tokens[:, 6:] = torch.randint(*SAYS, (16, 6), generator=generator)
        loss = torch.nn.functional.cross_entropy(teacher(tokens).logits[:, 5:-1].flatten(0, 1), tokens[:, 6:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.8  # log 5 = 1.61
    teacher.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_student_comes_nearer_to_its_teacher(start, ppo_arguments, model_folder, tmp_path):
    save_teacher(tmp_path / "teacher", AutoTokenizer.from_pretrained(model_folder))
    program = start(
        "tools/train_ppo.py",
        *ppo_arguments("+algorithm=distill", f"algorithm.reference_path={tmp_path / 'teacher'}"),
        "steps=12", "evaluation.every=0", "rollout.prompts_per_step=16", "policy.optimizer.schedule=constant",
        "policy.optimizer.lr=5e-3",
    )  # fmt: skip
    assert program.wait() == 0, program.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "latest" / "metrics.jsonl").read_text().splitlines()]
    apart = [row["policy/reference_kl"] for row in rows if "policy/reference_kl" in row]
    assert len(apart) == 12 and sum(apart[-3:]) < 0.5 * sum(apart[:3])


def test_a_teacher_with_other_tokens_is_refused(start, ppo_arguments, model_folder, tmp_path):
    tiny_model("qwen3", **SIZES).save_pretrained(tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens(["×"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    teacher = f"algorithm.reference_path={tmp_path / 'teacher'}"
    program = start("tools/train_ppo.py", *ppo_arguments("+algorithm=distill", teacher))
    assert program.wait() != 0
    assert "algorithm.reference_path=" in program.output and "1 of their tokens" in program.output
