"""Process groups: which device, which ranks, which place this rank has in the layout.

Apart from the CPU layer (`areal_mega.runtime.cpu`) this is the only module that asks which device it runs on.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from areal_mega.config.checks import resolve_device
from areal_mega.config.options import ParallelOptions, RuntimeOptions
from areal_mega.runtime import cpu

# Longer than any run: what waits for the main rank ends with it, as torchrun stops all ranks when one is gone.
WAITING = timedelta(days=365)


@dataclass(frozen=True)
class Topology:
    """This rank's place among ``world = tp * cp * dp * pp = etp * ep * edp * pp`` ranks.

    The ranks of one DP replica (its TP x CP x PP ranks) hold one copy of the dense layers and see the same batch; those
    of CP share the work on each of its sequences. Experts are spread over TP x CP x DP in their own way: EP ranks hold
    different ones, ETP ranks different parts of them, EDP ranks the same. vpp: model chunks of each pipeline stage.
    parallel: the options that this follows from, for whoever builds a model in this layout.

    `broadcast`, `gather`, `barrier` and `scatter_over_dp` use groups of their own, which are not under
    ``runtime.timeout``: in them the other ranks wait while rank 0 starts the engine, generates, evaluates or writes
    files, which may take any time. That limit is for collectives that all ranks reach together, where a long wait means
    that something hangs.

    waiting: of all ranks. leaders: of the first rank of each replica. replica: of this rank's.
    """

    rank: int
    world: int
    tp: int
    pp: int
    dp: int
    tp_rank: int
    pp_rank: int
    dp_rank: int
    device: torch.device
    waiting: dist.ProcessGroup
    leaders: dist.ProcessGroup
    replica: dist.ProcessGroup
    parallel: ParallelOptions
    vpp: int = 1
    cp: int = 1
    cp_rank: int = 0
    ep: int = 1
    ep_rank: int = 0
    etp: int = 1
    etp_rank: int = 0
    edp_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that talks to the user and writes files."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the last pipeline stage, where the head and the loss are."""
        return self.pp_rank == self.pp - 1

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank (any picklable object), whenever rank 0 has it."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.waiting)
        return box[0]

    def scatter_over_dp(self, values: Sequence[Any] | None) -> Any:
        """Rank 0's ``values[dp_rank]`` on every rank of each replica (any picklable objects), whenever rank 0 has them.

        They leave rank 0 once, however many ranks a replica has.
        """
        box = [None]
        if dist.get_rank(self.replica) == 0:
            dist.scatter_object_list(box, list(values) if values else None, src=0, group=self.leaders)
        dist.broadcast_object_list(box, group=self.replica, group_src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (any picklable object), by rank, on every rank, whenever the last has it."""
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value, group=self.waiting)
        return box

    def barrier(self) -> None:
        """Wait until every rank is here, however long that takes."""
        dist.barrier(self.waiting)

    def sum_over_dp(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of a host tensor over the data-parallel replicas, on all of them."""
        return self._reduce_over_dp(x, dist.ReduceOp.SUM)

    def max_over_dp(self, x: torch.Tensor) -> torch.Tensor:
        """The largest of a host tensor over the data-parallel replicas, on all of them."""
        return self._reduce_over_dp(x, dist.ReduceOp.MAX)

    def _reduce_over_dp(self, x: torch.Tensor, operation: Any) -> torch.Tensor:
        from megatron.core import parallel_state

        x = x.clone()
        dist.all_reduce(x, operation, group=parallel_state.get_data_parallel_group())
        return x


def initialize(options: RuntimeOptions, parallel: ParallelOptions, seed: int) -> Topology:
    """Set up torch.distributed and Megatron's process groups; the first thing a trainer rank does.

    Started by torchrun, the ranks find each other through its environment; started without it, the process
    is a world of one. Must run before the first import of megatron, and after `areal_mega.config.checks.check`.
    """
    device = _device(options.device)
    if device.type == "cpu":
        cpu.enable()
    else:
        torch.cuda.set_device(device)
    torch.set_num_threads(options.threads)
    _hush()
    _join(device, timedelta(seconds=options.timeout))
    return split(parallel, device, seed, options.timeout)


def shutdown() -> None:
    """Leave all process groups. Does nothing where none were made."""
    if not dist.is_initialized():
        return
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _hush() -> None:
    """Megatron advises extensions that are not needed here, announces machinery that is off, and does not know our
    layers."""
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    warnings.filterwarnings("ignore", category=FutureWarning, message="Please use DTensor instead")
    for module in ("rerun_state_machine", "transformer.transformer_layer"):
        logging.getLogger(f"megatron.core.{module}").setLevel(logging.ERROR)


def _device(name: str) -> torch.device:
    if resolve_device(name, torch.cuda.is_available()) == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _join(device: torch.device, timeout: timedelta) -> None:
    # Objects travel over gloo on every device, so that they need no GPU memory.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if "WORLD_SIZE" in os.environ:
        store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun keeps its store when it starts the ranks anew: there they would find the addresses of the dead.
        start = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, timeout=timeout, store=start, rank=rank, world_size=world)
    else:  # a world of one needs no port: its store lives in this process
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)


def split(parallel: ParallelOptions, device: torch.device, seed: int, timeout: float) -> Topology:
    """Megatron's process groups of a layout, in the place of any there were."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor or parallel.tensor,
        distributed_timeout_minutes=math.ceil(timeout / 60),
        create_gloo_process_groups=False,
    )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    dp = parallel_state.get_data_parallel_world_size()
    dp_rank = parallel_state.get_data_parallel_rank()
    waiting = dist.new_group(timeout=WAITING, backend="gloo")
    leaders, replica = _replica_groups(dp, dp_rank, waiting)
    return Topology(
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        tp=parallel.tensor,
        pp=parallel.pipeline,
        dp=dp,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        dp_rank=dp_rank,
        device=device,
        waiting=waiting,
        leaders=leaders,
        replica=replica,
        vpp=parallel.virtual_pipeline,
        cp=parallel.context,
        cp_rank=parallel_state.get_context_parallel_rank(),
        ep=parallel.expert,
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        etp=parallel.expert_tensor or parallel.tensor,
        etp_rank=parallel_state.get_expert_tensor_parallel_rank(),
        edp_rank=parallel_state.get_expert_data_parallel_rank(),
        parallel=parallel,
    )


def _replica_groups(dp: int, dp_rank: int, waiting: dist.ProcessGroup) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The first ranks of all replicas, and all ranks of this rank's; the group of leaders is useless to others."""
    places: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(places, dp_rank, group=waiting)
    replicas = [[rank for rank, place in enumerate(places) if place == number] for number in range(dp)]
    leaders = dist.new_group([replica[0] for replica in replicas], timeout=WAITING, backend="gloo")
    replica, _ = dist.new_subgroups_by_enumeration(replicas, timeout=WAITING, backend="gloo")
    return leaders, replica
