"""A model's state as Megatron's ``dist_checkpointing`` takes it: every tensor with its place in the whole model."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from areal_mega.policy import adam_state
from areal_mega.runtime.distributed import Topology

if TYPE_CHECKING:
    from areal_mega.policy.model import MegatronModel


def sharded_state(name: str, model: MegatronModel, *, optimizer: bool, loading: bool) -> dict[str, Any]:
    """Weights, and with ``optimizer`` the optimizer and its schedule, under names that begin with ``name``.

    loading: what is to be filled, not what is to be written.
    """
    metadata = {**adam_state.FORMAT, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    weights = {str(i): chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(model.chunks)}
    state: dict[str, Any] = {"weights": weights}
    if optimizer:
        state["optimizer"] = adam_state.sharded_state(model.optimizer, state["weights"], loading)
        state["updates"] = model.schedule.num_steps
    add_prefix_for_sharding(state, f"{name}.")
    return state


def load_state(model: MegatronModel, state: dict[str, Any]) -> None:
    """Take over what was loaded into `sharded_state`.

    What the options say now holds: of the schedule only the number of steps comes from the checkpoint.
    """
    for i, chunk in enumerate(model.chunks):
        chunk.load_state_dict(state["weights"][str(i)])
    if not model.trains:  # its optimizer's counters, being no tensors, are loaded even so
        return
    if "optimizer" in state:
        adam_state.load_state(model.optimizer, state["optimizer"])
        model.schedule.num_steps = state["updates"]
        model.schedule.step(0)
    else:
        model.optimizer.reload_model_params()


def random_state(topology: Topology) -> dict[str, Any]:
    """The random generators of this rank; they mean something to a rank in the same place of the same layout."""
    generators = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if topology.device.type == "cuda" else None,
        "megatron": get_cuda_rng_tracker().get_states(),
    }
    return {"random": ShardedObject("random", generators, (topology.world,), (topology.rank,))}


def load_random_state(state: dict[str, Any]) -> None:
    """Take over what was loaded into `random_state`."""
    generators = state["random"]
    random.setstate(generators["python"])
    np.random.set_state(generators["numpy"])
    torch.set_rng_state(generators["torch"])
    if generators["device"] is not None:
        torch.cuda.set_rng_state(generators["device"])
    get_cuda_rng_tracker().set_states(generators["megatron"])
