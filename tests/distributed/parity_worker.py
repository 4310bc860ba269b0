"""Started by torchrun: measures how far our model is from transformers in one process, in float64.

Rank 0 writes the largest deviations, by layout, model family and check, as JSON. `test_parity` judges them.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from distributed.layouts import LAYOUTS
from models import VOCAB, as_in_files, save_tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from areal_mega.config.options import (
    OptimizerOptions,
    ParallelOptions,
    PolicyOptions,
    RuntimeOptions,
)
from areal_mega.data.packed import PackedBatch
from areal_mega.runtime.distributed import Topology, initialize, shutdown, split

TEMPERATURE = 0.8
LENGTHS = (5, 9, 30, 2, 17, 16, 33, 1, 12)
STEPS = 4
OPTIMIZER = OptimizerOptions(
    lr=1e-2, min_lr_ratio=0.1, schedule="cosine", warmup_steps=2, weight_decay=0.1, eps=1e-3, clip_grad=0.5
)

Outputs = dict[str, Tensor]


def main(out: str, ranks: str, only: str = "", only_family: str = "") -> None:
    """Measure every layout of so many ranks (whose name contains ``only``), one after another in these processes."""
    device, results = torch.device("cpu"), {}
    topology = initialize(RuntimeOptions(device="cpu"), ParallelOptions(), seed=1)
    folder = Path(out).parent
    chosen = {name: layout for name, layout in LAYOUTS.items() if layout.ranks == int(ranks) and only in name}
    oracles = {}
    for family in sorted({family for layout in chosen.values() for family in layout.families if only_family in family}):
        if topology.is_main:
            save_tiny_model(folder / family, family)
        topology.barrier()
        oracles[family] = Oracle(folder / family)
    for name, layout in chosen.items():
        topology = split(layout.options.parallel, device, seed=1, timeout=60)
        for family in layout.families:
            if family in oracles:
                everything = family == layout.families[0]
                found = measure(topology, layout.options, folder / family, oracles[family], everything)
                results.setdefault(name, {})[family] = found
    if topology.is_main:
        Path(out).write_text(json.dumps(results))
    topology.barrier()
    shutdown()


class Oracle:
    """What transformers computes in float64 for the whole batch, in this process alone."""

    def __init__(self, path: Path) -> None:
        self.hf = exact(
            AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa", experts_implementation="eager")
        ).train()
        self.batch = make_batch()
        self.outputs = hf_outputs(self.hf, self.batch)
        self.loss = policy_loss(self.batch, self.outputs)[0]
        self.hf.zero_grad()
        self.loss.backward()
        self.gradients = gradients_of(self.hf)
        self.outputs = {name: values.detach() for name, values in self.outputs.items()}
        self.trained = train_with_adamw(copy.deepcopy(self.hf), self.batch)


def measure(
    topology: Topology, options: PolicyOptions, path: Path, oracle: Oracle, everything: bool
) -> dict[str, float]:
    """The deviations of one family in one layout: all, or those of the policy's outputs and gradients."""
    share = topology.scatter_over_dp(shares(topology.dp) if topology.is_main else None)
    run = Run(topology, options, path, oracle, oracle.batch.select(share))
    found = policy_deviations(run)
    return (
        found
        if not everything
        else {
            **found,
            **micro_batch_deviations(run),
            **critic_deviations(run),
            **optimizer_deviations(run),
        }
    )


@dataclass(frozen=True)
class Run:
    topology: Topology
    options: PolicyOptions
    path: Path
    oracle: Oracle
    share: PackedBatch

    def build(self, head: str = "logprob", tokens: int = 64, optimizer: OptimizerOptions | None = None, path=None):
        from areal_mega.policy.model import MegatronModel

        return MegatronModel(
            self.topology,
            str(path or self.path),
            replace(self.options, max_tokens_per_micro_batch=tokens),
            dtype="float32",
            optimizer=optimizer or OptimizerOptions(lr=1e-3, clip_grad=0.0),
            head=head,  # type: ignore[arg-type]
            temperature=TEMPERATURE if head == "logprob" else 1.0,
            total_steps=STEPS,
            seed=1,
        )


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
    """Unequal on purpose: all replicas but the first have one sequence, the second a short one."""
    order = list(range(len(LENGTHS)))
    return [order[:3] + order[2 + dp :], *([index] for index in order[3 : 2 + dp])]


def policy_deviations(run: Run) -> dict[str, float]:
    model, oracle, topology = run.build(), run.oracle, run.topology
    found: dict[str, float] = {}
    exported = dict(model.export())
    if topology.is_main:
        found["export, differing elements"] = differing(exported, oracle.hf)
    outputs: list = [None] * topology.world
    dist.all_gather_object(outputs, (topology.dp_rank, model.forward(run.share)))
    for replica, got in outputs:
        indices = shares(topology.dp)[replica]
        for name, values in got.items():
            wanted = oracle.batch.with_fields(_=oracle.outputs[name]).select(indices)["_"]
            found[name] = max(found.get(name, 0.0), worst(values, wanted))
    found |= gradient_deviations(run, model, policy_loss, oracle.gradients, oracle.loss)
    model.save(run.path.with_name("saved"))
    after = dict(model.export())
    if topology.is_main:
        reloaded = AutoModelForCausalLM.from_pretrained(run.path.with_name("saved"))
        found["saved, differing elements"] = differing(after, reloaded)
    return found


def micro_batch_deviations(run: Run) -> dict[str, float]:
    """One step in one micro-batch and in several."""
    steps = [run.build(tokens=tokens).train_step(run.share, policy_loss) for tokens in (10_000, 40)]
    return {f"micro-batch split, {k}": relative(steps[1][k], steps[0][k]) for k in ("loss", "grad_norm")}


def critic_deviations(run: Run) -> dict[str, float]:
    critic, oracle, topology = run.build("value"), run.oracle, run.topology
    weights = dict(critic.export())
    values = critic.forward(run.share)["values"]
    found: dict[str, float] = {}
    expected, wanted_gradients = values.new_zeros(()), {}
    if topology.is_main:
        hf = copy.deepcopy(oracle.hf)
        head = torch.nn.Linear(hf.config.hidden_size, 1, bias=False).double()
        head.weight.data.copy_(weights["score.weight"])
        hf.score = head
        hf.zero_grad()
        outputs = {"values": hf_values(hf, oracle.batch)}
        expected = critic_loss(oracle.batch, outputs)[0]
        expected.backward()
        wanted_gradients = gradients_of(hf)
        wanted = oracle.batch.with_fields(_=outputs["values"].detach()).select(shares(topology.dp)[0])["_"]
        found["values"] = worst(values, wanted)
    gradients = gradient_deviations(run, critic, critic_loss, wanted_gradients, expected)
    found |= {f"critic {name}": value for name, value in gradients.items()}
    trained = critic.forward(run.share)["values"]
    critic.save(run.path.with_name("saved-critic"))
    again = run.build("value", path=run.path.with_name("saved-critic")).forward(run.share)["values"]
    found["reloaded critic"] = worst(again, trained)
    return found


def gradient_deviations(
    run: Run, model, loss_fn: Callable, wanted: dict[str, Tensor], expected: Tensor
) -> dict[str, float]:
    """Loss, gradient norm, and every gradient tensor relative to its largest element, after one step."""
    stats = model.train_step(run.share, loss_fn)
    gradients = whole_gradients(run.topology, model)
    if not run.topology.is_main:
        return {}
    assert wanted.keys() == gradients.keys(), wanted.keys() ^ gradients.keys()
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in wanted.values()))
    return {
        "gradients": max(worst(gradients[n], g) / float(g.abs().max()) for n, g in wanted.items()),
        "loss": relative(stats["loss"], expected.item()),
        "grad_norm": relative(stats["grad_norm"], norm),
        "tokens": relative(stats["tokens"], float(run.oracle.batch["loss_mask"].sum())),
    }


def whole_gradients(topology: Topology, model) -> dict[str, Tensor]:
    """The reduced gradients in HF names; each rank of a buffer's group holds its shard of it."""
    from areal_mega.policy import hf_weights

    for ddp in model.ddp:
        for buffer in ddp.buffers + ddp.expert_parallel_buffers:
            group = buffer.data_parallel_group
            for bucket in buffer.buckets:
                shards = list(bucket.grad_data.chunk(group.size()))
                dist.all_gather(shards, shards[group.rank()].clone(), group=group)
    gradients = {name: p.main_grad for name, p in hf_weights.named_parameters(model.chunks).items()}
    return dict(hf_weights.export(gradients, model.hf, topology))


def optimizer_deviations(run: Run) -> dict[str, float]:
    """Some steps against torch's AdamW in one process: schedule, clipping, and the weight decay rule."""
    model = run.build(optimizer=OPTIMIZER)
    stats = [model.train_step(run.share, policy_loss) for _ in range(STEPS)]
    weights = dict(model.export())
    if not run.topology.is_main:
        return {}
    start, moved, trained = named_weights(run.oracle.hf), run.oracle.trained, run.oracle.gradients
    rates = [scheduled_lr(step + 1) for step in range(STEPS)]
    # A weight that hardly moves is known no better than float32 can write it.
    rounding = {n: float(moved[n].abs().max()) * 2**-24 for n in trained}
    deviations = {n: max(0.0, worst(weights[n], moved[n]) - rounding[n]) for n in trained}
    return {
        "weights after steps": max(deviations[n] / worst(moved[n], start[n]) for n in trained),
        "learning rate": max(relative(s["lr"], lr) for s, lr in zip(stats, rates, strict=True)),
    }


def train_with_adamw(hf: PreTrainedModel, batch: PackedBatch) -> dict[str, Tensor]:
    """The weights after the steps of `optimizer_deviations`."""
    o = OPTIMIZER
    groups = [
        {"params": [p for p in hf.parameters() if p.dim() > 1], "weight_decay": o.weight_decay},
        {"params": [p for p in hf.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps)
    for step in range(STEPS):
        hf.zero_grad()
        policy_loss(batch, hf_outputs(hf, batch))[0].backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), o.clip_grad)
        for group in adamw.param_groups:
            group["lr"] = scheduled_lr(step + 1)
        adamw.step()
    return named_weights(hf)


def scheduled_lr(step: int) -> float:
    """Linear warm-up, then cosine to the final rate at the last step (steps count from 1)."""
    o = OPTIMIZER
    if step <= o.warmup_steps:
        return o.lr * step / o.warmup_steps
    progress = (step - o.warmup_steps) / (STEPS - o.warmup_steps)
    low = o.lr * o.min_lr_ratio
    return low + (o.lr - low) * 0.5 * (1 + math.cos(math.pi * progress))


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
        values += [hidden.new_zeros(1), hf.score(hidden).squeeze(1)]
    return torch.cat(values) * batch["loss_mask"]


def named_weights(hf: PreTrainedModel) -> dict[str, Tensor]:
    """What is in checkpoints, by the names it has there: parameters, and biases of routers."""
    biases = {name: b for name, b in hf.named_buffers() if name.endswith("e_score_correction_bias")}
    return as_in_files(hf, {name: p.detach() for name, p in hf.named_parameters()} | biases)


def gradients_of(hf: PreTrainedModel) -> dict[str, Tensor]:
    return as_in_files(hf, {name: p.grad for name, p in hf.named_parameters() if p.grad is not None})


def differing(tensors: Outputs, hf: PreTrainedModel) -> float:
    """How many elements of an export differ from the parameters of ``hf``."""
    expected = named_weights(hf)
    assert tensors.keys() == expected.keys(), tensors.keys() ^ expected.keys()
    return float(sum((tensors[name] != p).sum() for name, p in expected.items()))


def worst(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max())


def relative(got: float, wanted: float) -> float:
    return abs(got - wanted) / abs(wanted)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(*sys.argv[1:])
