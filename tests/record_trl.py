"""Writes tests/trl_losses.json: what TRL's own GRPOTrainer makes of the responses of `by_definition`, and its DPO and
reward trainers of the answers of `preference_pairs`.

Neither TRL nor its `datasets` are among our requirements, so that this is run by hand, without dependencies, which
would bring another torch:

    pip install --no-deps --target /tmp/trl trl==1.16.0 datasets multiprocess dill xxhash pandas python-dateutil
    PYTHONPATH=/tmp/trl python tests/record_trl.py

Only the trainers' methods for the loss run, on given log-probs; they are called as plain functions, on objects that
have what they ask for.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import by_definition
import torch
import trl
from preference_pairs import PAIRS, answers
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer, GRPOTrainer, RewardTrainer

SEED, GROUPS, SIZE = 11, 2, 3
ARGUMENTS = {
    "delta": None,
    "use_bias_correction_kl": False,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "steps_per_generation": 1,
}
ATTRIBUTES = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "beta": 0.0,
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "max_completion_length": by_definition.LONGEST,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "aux_loss_enabled": False,
    "_entropy_bonus_enabled": False,
    "current_gradient_accumulation_steps": 1,
}
# What differs from these, by the name that the test has for it.
CASES = {
    "grpo": {},
    "dr-grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},  # TRL's epsilon_high is the cap of the ratio itself
    "sapo": {"loss_type": "sapo"},
    "dual-clip": {"delta": 1.3},
    "tis": {"loss_type": "dapo", "use_vllm": True},
    "kl": {"beta": 0.1},
    "kl-unbiased": {"beta": 0.1, "use_bias_correction_kl": True},
}
TIS_CAP = 1.1
PREFERENCES = {"seed": 12, "beta": 0.3, "center_coef": 0.01, "margins": [0.0, 0.5, 1.0, 0.25, 2.0]}
DPO_CASES = ("sigmoid", "sigmoid_norm", "ipo", "nca_pair")


def main() -> None:
    recorded = {"trl": trl.__version__, "seed": SEED, "groups": GROUPS, "size": SIZE}
    recorded["cases"] = {name: record(changes) for name, changes in CASES.items()}
    recorded["pairs"] = {**PREFERENCES, "cases": {name: record_dpo(name) for name in DPO_CASES}}
    recorded["pairs"]["cases"]["reward"] = record_reward()
    Path(__file__).with_name("trl_losses.json").write_text(json.dumps(recorded) + "\n")


def record(changes: dict) -> dict:
    """TRL's loss and its gradient in the log-probs, one response after the other."""
    data = by_definition.responses(SEED, GROUPS, SIZE)
    rewards = by_definition.rewards_of(data)
    centred = by_definition.centred(data, rewards)
    advantages = [row[0] for row in by_definition.grpo_advantages(data, rewards)]
    if changes.get("loss_type") == "dr_grpo":
        advantages = centred

    def padded(name: str) -> torch.Tensor:
        rows = [torch.as_tensor(getattr(r, name), dtype=torch.float64) for r in data]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    now, proximal = padded("now"), padded("proximal")
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r)) for r in data], batch_first=True).double()
    inputs = {
        "prompt_ids": torch.zeros(len(data), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(data), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor(advantages, dtype=torch.float64),
        "old_per_token_logps": proximal,
        "ref_per_token_logps": padded("reference"),
        "num_items_in_batch": mask.sum(),
        "importance_sampling_ratio": (proximal - padded("behavior")).exp().clamp(max=TIS_CAP),
    }
    trainer = SimpleNamespace(
        **{k: changes.get(k, v) for k, v in ATTRIBUTES.items()},
        args=SimpleNamespace(**{k: changes.get(k, v) for k, v in ARGUMENTS.items()}),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
        ),
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, padded("entropy"), None),
    )
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return {"loss": loss.item(), "gradient": gradients([r.now for r in data])}


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)


def record_dpo(kind: str) -> dict:
    """TRL's loss and its gradient in the log-probs of the tokens, chosen and rejected answers in turns."""
    rows, reference = ([row.double() for row in x] for x in answers(PREFERENCES["seed"]))
    order = [*range(0, 2 * PAIRS, 2), *range(1, 2 * PAIRS, 2)]  # TRL has the chosen ones first
    for row in rows:
        row.requires_grad_()

    def padded(x: list) -> torch.Tensor:
        return pad_sequence([x[i] for i in order], batch_first=True)

    mask = pad_sequence([torch.ones(len(rows[i])) for i in order], batch_first=True).long()
    first = torch.zeros(len(rows), 1, dtype=torch.long)  # a prompt of one token, which nothing predicts
    mask = torch.cat([first, mask], 1)

    def outputs(x: torch.Tensor) -> SimpleNamespace:
        none = torch.zeros_like(x)
        return SimpleNamespace(log_probs=x, entropy=none, mean_logits=none, is_top1=none.bool())

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False), accelerator=accelerator(),
        aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None), use_weighting=False,
        ref_model=lambda **_: outputs(padded(reference)), f_divergence_type="reverse_kl", loss_types=[kind],
        loss_weights=[1.0], beta=PREFERENCES["beta"], label_smoothing=0.0, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": mask, "completion_mask": mask}

    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs(padded(rows)), inputs, False)
    loss.backward()
    return {"loss": loss.item(), "gradient": gradients(rows), **shown(trainer, "rewards/accuracies", "rewards/margins")}


def record_reward() -> dict:
    """TRL's loss and its gradient in the rewards, chosen and rejected answers in turns."""
    rows = [row[:1].double().requires_grad_() for row in answers(PREFERENCES["seed"])[0]]
    logits = torch.stack([*rows[::2], *rows[1::2]])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(center_rewards_coefficient=PREFERENCES["center_coef"]),
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    margins = torch.tensor(PREFERENCES["margins"], dtype=torch.float64)
    inputs = {"attention_mask": torch.ones(2 * PAIRS, 1), "margin": margins}
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)
    loss.backward()
    return {"loss": loss.item(), "gradient": gradients(rows), **shown(trainer, "accuracy", "margin")}


def gradients(rows: list) -> list[float]:
    return [x for row in rows for x in row.grad.tolist()]


def shown(trainer: SimpleNamespace, accuracy: str, margin: str) -> dict:
    metrics = trainer._metrics["train"]
    return {"accuracy": metrics[accuracy][0], "margin": metrics[margin][0]}


if __name__ == "__main__":
    main()
