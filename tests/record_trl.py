"""Writes tests/trl_losses.json: what TRL's own GRPOTrainer makes of the responses of `by_definition`.

Neither TRL nor its `datasets` are among our requirements, so that this is run by hand, without dependencies, which
would bring another torch:

    pip install --no-deps --target /tmp/trl trl==1.16.0 datasets multiprocess dill xxhash pandas python-dateutil
    PYTHONPATH=/tmp/trl python tests/record_trl.py

Only the trainer's method for the loss runs, on given log-probs; it is called as a plain function, on an object that
has what it asks for.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import by_definition
import torch
import trl
from trl import GRPOTrainer

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


def main() -> None:
    recorded = {"trl": trl.__version__, "seed": SEED, "groups": GROUPS, "size": SIZE}
    recorded["cases"] = {name: record(changes) for name, changes in CASES.items()}
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
    return {"loss": loss.item(), "gradient": [x for r in data for x in r.now.grad.tolist()]}


if __name__ == "__main__":
    main()
