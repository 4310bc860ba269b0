"""What Megatron's distributed optimizer needs to save and load its state, with torch's Adam above all.

Megatron's checkpoints are made for the Adam of TransformerEngine and Apex. torch's differs in three ways, and each
would spoil a checkpoint: it has no state before its first step, it counts the steps of every parameter, and its
counters must not be one tensor (each parameter would then count on for all of them). With any Adam, Megatron cuts
the state out of its buffers at the wrong places where a bucket of a buffer ends with padding: see `_unshifted`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer, DistributedOptimizer, MegatronOptimizer

# One tensor for each parameter, of its shape, whatever the layout: it can be loaded under any other.
FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}


def sharded_state(optimizer: MegatronOptimizer, weights: dict[str, Any], loading: bool) -> dict[str, Any]:
    """The optimizer's moments, main parameters and step count, for Megatron's ``dist_checkpointing``.

    weights: the model's own sharded state. loading: what is to be filled, not what is to be written.
    """
    parts, steps = {}, set()
    for index, part in enumerate(_parts(optimizer)):
        _create_moments(part.optimizer)
        with _unshifted(part):
            sharded = part.sharded_state_dict(weights, is_loading=loading, metadata=FORMAT)
        steps |= {group["step"] for group in sharded["optimizer"]["param_groups"] if "step" in group}
        parts[str(index)] = sharded["param_state"]
    # Layouts have different numbers of parts: what a part has must be found by its parameters, not by its number.
    return {"step": max(steps, default=0), "parameters": parts}


def load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Take over a state that was loaded into `sharded_state`; learning rates and decay stay as they are."""
    for index, part in enumerate(_parts(optimizer)):
        own = part.state_dict()
        for group in own["optimizer"]["param_groups"]:
            group["step"] = state["step"]
        part.load_state_dict(own)
        # Megatron now gave all parameters one counter, and would look for it among the loaded tensors.
        counters = {p: s.pop("step") for p, s in part.optimizer.state.items() if "step" in s}
        part.load_parameter_state_from_fully_reshardable(state["parameters"][str(index)])
        for parameter, counter in counters.items():
            part.optimizer.state[parameter]["step"] = counter.clone()


def _parts(optimizer: MegatronOptimizer) -> Iterator[DistributedOptimizer]:
    """The distributed optimizers; more than one where some parameters have a data-parallel group of their own."""
    parts = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return (part for part in parts if not part.is_stub_optimizer)


@contextmanager
def _unshifted(part: DistributedOptimizer) -> Iterator[None]:
    """Let Megatron find every parameter's state where it is.

    It gathers a buffer's buckets end to end without their padding, but looks a parameter up by its place in the
    buffer with the padding: behind the first padded bucket it would take its neighbour's state, and zeros for the
    last. (The embedding that pipeline stages share has its own bucket, so two are common.)
    """
    padded = [(b, b.numel) for b in part.buffers]
    padded += [(bucket, bucket.grad_data.numel()) for buffer in part.buffers for bucket in buffer.buckets]
    unpadded = [holder.numel_unpadded for holder, _ in padded]
    try:
        for holder, numel in padded:
            holder.numel_unpadded = numel
        yield
    finally:
        for (holder, _), numel in zip(padded, unpadded, strict=True):
            holder.numel_unpadded = numel


def _create_moments(adam: torch.optim.Optimizer) -> None:
    """What torch's Adam creates in its first step."""
    if not isinstance(adam, torch.optim.Adam):
        return
    for group in adam.param_groups:
        for parameter in group["params"]:
            if parameter not in adam.state:
                adam.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
