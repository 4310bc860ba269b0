"""Started by torchrun under one layout: measures how far our model is from transformers in one process, in float64.

Rank 0 writes the largest deviations, by check and model family, as JSON. `test_parity` judges them.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import VOCAB, save_tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from areal_mega.config.options import (
    OptimizerOptions,
    ParallelOptions,
    PolicyOptions,
    RuntimeOptions,
)
from areal_mega.data.packed import PackedBatch
from areal_mega.runtime.distributed import Topology, initialize, shutdown

TEMPERATURE = 0.8
LENGTHS = (5, 9, 30, 2, 17, 16, 33, 1, 12)
STEPS = 4
OPTIMIZER = OptimizerOptions(
    lr=1e-2, min_lr_ratio=0.1, schedule="cosine", warmup_steps=2, weight_decay=0.1, eps=1e-3, clip_grad=0.5
)

Outputs = dict[str, Tensor]


def main(out: str, tensor: str, pipeline: str) -> None:
    parallel = ParallelOptions(int(tensor), int(pipeline))
    topology = initialize(RuntimeOptions(device="cpu"), parallel, seed=1)
    folder = Path(out).parent
    results = {}
    for family in ("qwen3", "qwen2", "llama"):
        path = folder / family
        if topology.is_main:
            save_tiny_model(path, family)
        topology.barrier()
        results[family] = measure(topology, path)
    if topology.is_main:
        Path(out).write_text(json.dumps(results))
    topology.barrier()
    shutdown()


def measure(topology: Topology, path: Path) -> dict[str, float]:
    """All deviations of one family."""
    hf = exact(AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")).train()
    batch = make_batch()
    share = batch.select(shares(topology.dp)[topology.dp_rank])
    return {
        **policy_deviations(topology, path, hf, batch, share),
        **micro_batch_deviations(topology, path, share),
        **critic_deviations(topology, path, hf, batch, share),
        **optimizer_deviations(topology, path, hf, batch, share),
    }


def exact(hf: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, so that rounding is ours alone; its norms would go back to float32."""
    for module in hf.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(rms_norm, module)  # type: ignore[method-assign]
    return hf.double()


def rms_norm(module: torch.nn.Module, hidden: Tensor) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return torch.nn.functional.rms_norm(hidden, weight.shape, weight, module.variance_epsilon)


def make_batch() -> PackedBatch:
    generator = torch.Generator().manual_seed(5)
    sequences = []
    for n in LENGTHS:
        mask = torch.rand(n, generator=generator) < 0.7
        mask[0] = False
        tokens = torch.randint(0, VOCAB, (n,), generator=generator)
        sequences.append({"tokens": tokens, "loss_mask": mask, "weight": torch.randn(n, generator=generator)})
    batch = PackedBatch.pack(sequences)
    return batch.with_counts(tokens=float(batch["loss_mask"].sum()))


def shares(dp: int) -> list[list[int]]:
    """Unequal on purpose: the last replica has one short sequence."""
    order = list(range(len(LENGTHS)))
    return [order] if dp == 1 else [order[:3] + order[4:], order[3:4]]


def policy_deviations(
    topology: Topology, path: Path, hf: PreTrainedModel, batch: PackedBatch, share: PackedBatch
) -> dict[str, float]:
    model = build(topology, path, "logprob")
    found: dict[str, float] = {}
    exported = dict(model.export())
    if topology.is_main:
        found["export, differing elements"] = differing(exported, hf)
    outputs: list = [None] * topology.world
    dist.all_gather_object(outputs, (topology.dp_rank, model.forward(share)))
    expected = hf_outputs(hf, batch)
    for replica, got in outputs:
        indices = shares(topology.dp)[replica]
        for name, values in got.items():
            wanted = batch.with_fields(_=expected[name].detach()).select(indices)["_"]
            found[name] = max(found.get(name, 0.0), worst(values, wanted))
    found |= gradient_deviations(topology, model, share, policy_loss, hf, policy_loss(batch, expected)[0])
    model.save(path.with_name("saved"))
    after = dict(model.export())
    if topology.is_main:
        reloaded = AutoModelForCausalLM.from_pretrained(path.with_name("saved"))
        found["saved, differing elements"] = differing(after, reloaded)
    return found


def micro_batch_deviations(topology: Topology, path: Path, share: PackedBatch) -> dict[str, float]:
    """One step in one micro-batch and in several."""
    steps = [build(topology, path, "logprob", tokens).train_step(share, policy_loss) for tokens in (10_000, 40)]
    return {f"micro-batch split, {k}": relative(steps[1][k], steps[0][k]) for k in ("loss", "grad_norm")}


def critic_deviations(
    topology: Topology, path: Path, hf: PreTrainedModel, batch: PackedBatch, share: PackedBatch
) -> dict[str, float]:
    critic = build(topology, path, "value")
    weights = dict(critic.export())
    values = critic.forward(share)["values"]
    found: dict[str, float] = {}
    expected = values.new_zeros(())
    if topology.is_main:
        head = torch.nn.Linear(hf.config.hidden_size, 1, bias=False).double()
        head.weight.data.copy_(weights["value_head.weight"])
        hf.value_head = head
        outputs = {"values": hf_values(hf, batch)}
        indices = shares(topology.dp)[0]
        wanted = batch.with_fields(_=outputs["values"].detach()).select(indices)["_"]
        found["values"] = worst(values, wanted)
        expected = critic_loss(batch, outputs)[0]
    gradients = gradient_deviations(topology, critic, share, critic_loss, hf, expected)
    found |= {f"critic {name}": value for name, value in gradients.items()}
    trained = critic.forward(share)["values"]
    critic.save(path.with_name("saved-critic"))
    again = build(topology, path.with_name("saved-critic"), "value").forward(share)["values"]
    found["reloaded critic"] = worst(again, trained)
    if topology.is_main:
        del hf.value_head
    return found


def gradient_deviations(
    topology: Topology,
    model,
    share: PackedBatch,
    loss_fn: Callable,
    hf: PreTrainedModel,
    expected: Tensor,
) -> dict[str, float]:
    """Loss, gradient norm, and every gradient tensor relative to its largest element, after one step."""
    stats = model.train_step(share, loss_fn)
    gradients = whole_gradients(topology, model)
    if not topology.is_main:
        return {}
    hf.zero_grad()
    expected.backward()
    wanted = {name: p.grad for name, p in hf.named_parameters() if p.grad is not None}
    assert wanted.keys() == gradients.keys(), wanted.keys() ^ gradients.keys()
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in wanted.values()))
    return {
        "gradients": max(worst(gradients[n], g) / float(g.abs().max()) for n, g in wanted.items()),
        "loss": relative(stats["loss"], expected.item()),
        "grad_norm": relative(stats["grad_norm"], norm),
        "tokens": relative(stats["tokens"], float(make_batch()["loss_mask"].sum())),
    }


def whole_gradients(topology: Topology, model) -> dict[str, Tensor]:
    """The reduced gradients in HF names; each DP rank holds its shard of Megatron's buffer."""
    from megatron.core import parallel_state

    from areal_mega.policy import hf_weights

    group = parallel_state.get_data_parallel_group()
    for buffer in model.ddp.buffers:
        for bucket in buffer.buckets:
            shards = list(bucket.grad_data.chunk(topology.dp))
            dist.all_gather(shards, shards[topology.dp_rank].clone(), group=group)
    parameters = hf_weights.named_parameters(model.gpt)
    gradients = {name: p.main_grad for name, p in parameters.items()}
    return dict(hf_weights.export(gradients, model.hf, topology))


def optimizer_deviations(
    topology: Topology, path: Path, hf: PreTrainedModel, batch: PackedBatch, share: PackedBatch
) -> dict[str, float]:
    """Some steps against torch's AdamW in one process: schedule, clipping, and the weight decay rule."""
    model = build(topology, path, "logprob", optimizer=OPTIMIZER)
    stats = [model.train_step(share, policy_loss) for _ in range(STEPS)]
    weights = dict(model.export())
    if not topology.is_main:
        return {}
    start = {name: p.detach().clone() for name, p in hf.named_parameters()}
    o = OPTIMIZER
    groups = [
        {"params": [p for p in hf.parameters() if p.dim() > 1], "weight_decay": o.weight_decay},
        {"params": [p for p in hf.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps)
    rates = [scheduled_lr(step + 1) for step in range(STEPS)]
    for lr in rates:
        hf.zero_grad()
        policy_loss(batch, hf_outputs(hf, batch))[0].backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), o.clip_grad)
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
    moved = {name: p.detach() for name, p in hf.named_parameters()}
    return {
        "weights after steps": max(worst(weights[n], moved[n]) / worst(moved[n], start[n]) for n in weights),
        "learning rate": max(relative(s["lr"], lr) for s, lr in zip(stats, rates, strict=True)),
    }


def scheduled_lr(step: int) -> float:
    """Linear warm-up, then cosine to the final rate at the last step (steps count from 1)."""
    o = OPTIMIZER
    if step <= o.warmup_steps:
        return o.lr * step / o.warmup_steps
    progress = (step - o.warmup_steps) / (STEPS - o.warmup_steps)
    low = o.lr * o.min_lr_ratio
    return low + (o.lr - low) * 0.5 * (1 + math.cos(math.pi * progress))


def build(
    topology: Topology,
    path: Path,
    head: str,
    tokens: int = 64,
    optimizer: OptimizerOptions | None = None,
):
    from areal_mega.policy.model import MegatronModel

    return MegatronModel(
        topology,
        str(path),
        PolicyOptions(max_tokens_per_micro_batch=tokens),
        dtype="float32",
        optimizer=optimizer or OptimizerOptions(lr=1e-3, clip_grad=0.0),
        head=head,  # type: ignore[arg-type]
        temperature=TEMPERATURE if head == "logprob" else 1.0,
        total_steps=STEPS,
        seed=1,
    )


def policy_loss(batch: PackedBatch, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
    mask, count = batch["loss_mask"], batch.counts["tokens"]
    objective = batch["weight"] * outputs["logprobs"] + 0.3 * outputs["entropy"]
    return -(objective * mask).sum() / count, {"tokens": mask.sum()}


def critic_loss(batch: PackedBatch, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
    mask, count = batch["loss_mask"], batch.counts["tokens"]
    error = (outputs["values"] - batch["weight"]).square()
    return (error * mask).sum() / count, {"tokens": mask.sum()}


def hf_outputs(hf: PreTrainedModel, batch: PackedBatch) -> Outputs:
    """Log-probs and entropies ``[N]``, one sequence at a time."""
    logprobs, entropies = [], []
    for tokens in batch.unpack("tokens"):
        logits = (hf(tokens[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
        first = logits.new_zeros(1)
        logprobs += [first, logits.gather(1, tokens[1:, None]).squeeze(1)]
        entropies += [first, -(logits.exp() * logits).sum(-1)]
    mask = batch["loss_mask"]
    return {"logprobs": torch.cat(logprobs) * mask, "entropy": torch.cat(entropies) * mask}


def hf_values(hf: PreTrainedModel, batch: PackedBatch) -> Tensor:
    values = []
    for tokens in batch.unpack("tokens"):
        hidden = hf.model(tokens[None]).last_hidden_state[0, :-1]
        values += [hidden.new_zeros(1), hf.value_head(hidden).squeeze(1)]
    return torch.cat(values) * batch["loss_mask"]


def differing(tensors: Outputs, hf: PreTrainedModel) -> float:
    """How many elements of an export differ from the parameters of ``hf``."""
    expected = dict(hf.named_parameters())
    assert tensors.keys() == expected.keys(), tensors.keys() ^ expected.keys()
    return float(sum((tensors[name] != p).sum() for name, p in expected.items()))


def worst(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max())


def relative(got: float, wanted: float) -> float:
    return abs(got - wanted) / abs(wanted)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(*sys.argv[1:])
