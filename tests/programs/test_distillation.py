"""On-policy distillation as a whole program: the student comes nearer to the teacher, on what it says itself."""

import json

import pytest
from models import save_tiny_model
from transformers import AutoTokenizer

pytestmark = [pytest.mark.distributed, pytest.mark.engine]


def test_the_student_comes_nearer_to_its_teacher(start, ppo_arguments, model_folder, tmp_path):
    teacher = tmp_path / "teacher"
    save_tiny_model(teacher, "qwen3", seed=1, vocab_size=17, eos_token_id=0, bos_token_id=None, initializer_range=0.3)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(teacher)
    program = start(
        "tools/train_ppo.py",
        *ppo_arguments("+algorithm=distill", f"algorithm.reference_path={teacher}", "policy.optimizer.lr=5e-3"),
        "steps=16", "evaluation.every=0", "rollout.prompts_per_step=16", "policy.optimizer.schedule=constant",
    )  # fmt: skip
    assert program.wait() == 0, program.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "latest" / "metrics.jsonl").read_text().splitlines()]
    apart = [row["policy/reference_kl"] for row in rows if "policy/reference_kl" in row]
    assert len(apart) == 16 and apart[0] > 0.3 and sum(apart[-3:]) < 0.5 * sum(apart[:3])


def test_a_teacher_with_other_tokens_is_refused(start, ppo_arguments, model_folder, tmp_path):
    teacher = tmp_path / "teacher"
    save_tiny_model(teacher, "qwen3", vocab_size=17, eos_token_id=0, bos_token_id=None)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens(["×"])
    tokenizer.save_pretrained(teacher)
    program = start("tools/train_ppo.py", *ppo_arguments("+algorithm=distill", f"algorithm.reference_path={teacher}"))
    assert program.wait() != 0
    assert "algorithm.reference_path=" in program.output and "1 of their tokens" in program.output
