"""How a run's new weights get into its engines: from options to `WeightSync`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from areal_mega.config.errors import UserError
from areal_mega.config.options import PPOOptions, ReshardingOptions
from areal_mega.policy.hf_weights import place
from areal_mega.policy.spec import read_config
from areal_mega.resharding.colocated import ColocatedTransport
from areal_mega.resharding.deployment import Deployment, deploy
from areal_mega.resharding.disaggregated import DisaggregatedTransport
from areal_mega.resharding.disk import DiskTransport
from areal_mega.resharding.engine_update import Engine
from areal_mega.resharding.layouts import SGLangGrid
from areal_mega.resharding.transport import Transport
from areal_mega.resharding.weight_sync import WeightSync
from areal_mega.runtime.distributed import Topology


def deployment_of(options: PPOOptions, topology: Topology) -> Deployment:
    """Where the run's weights are and go; every rank calls it.

    Raises:
        UserError: the engines' layout does not divide the model or the machines, or there are too few GPUs.
    """
    rollout = options.rollout
    cpu = topology.device.type == "cpu"
    engines = SGLangGrid(tp=rollout.tensor, ep=rollout.expert, count=rollout.engines, cpu=cpu)
    colocated = options.resharding.transport == "colocated"
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not (colocated or cpu):
        per_node = torch.cuda.device_count()
        if topology.world + engines.world > per_node:
            raise UserError(
                f"resharding.transport={options.resharding.transport} takes {topology.world} GPUs for the trainers and "
                f"{engines.world} for the engines of one machine, which has {per_node}; lower rollout.engines or "
                "rollout.tensor, or use resharding.transport=colocated."
            )
    places = topology.gather(place(topology))
    return deploy(read_config(options.model.path), places, engines, colocated=colocated, per_node=per_node)


def weight_sync(
    options: PPOOptions,
    topology: Topology,
    deployment: Deployment,
    weights: Mapping[str, Tensor],
    engines: Sequence[Engine],
    directory: Path,
) -> WeightSync:
    """The run's way of new weights into the engines; every rank calls it.

    weights: this rank's, by Megatron name. engines: on the main rank.
    """
    o = options.resharding
    transport = _transport(o, directory)(topology, deployment, weights, o.buffer_mb << 20)
    return WeightSync(topology, deployment, transport, o, engines, directory)


def _transport(o: ReshardingOptions, directory: Path) -> Callable[..., Transport]:
    if o.transport == "colocated":
        return ColocatedTransport
    if o.transport == "disaggregated":
        return partial(DisaggregatedTransport, remember=o.delta)
    folder = Path(o.folder) if o.folder else directory
    return partial(DiskTransport, folder=folder, directory=directory, remember=o.delta)
