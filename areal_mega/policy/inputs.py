"""From a replica's batch to the micro-batches that a rank puts through its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from areal_mega.data.micro_batches import micro_batches
from areal_mega.data.packed import PackedBatch
from areal_mega.policy.gpt import Selection
from areal_mega.policy.packing import PackedSequences, Slicing
from areal_mega.runtime.distributed import Topology

PLACE = "_place"  # a token's place in the replica's batch


@dataclass(frozen=True)
class MicroBatch:
    """batch: on the model's device. places: ``[l]`` in the replica's batch of the rows that this rank's layers have
    (a part of them under sequence parallel), -1 for padding; None where nobody asks."""

    batch: PackedBatch
    packed: PackedSequences
    selection: Selection
    places: Tensor | None


class Inputs:
    """Cuts batches for one model."""

    def __init__(self, topology: Topology, config: TransformerConfig, max_tokens: int) -> None:
        self.topology, self.config, self.max_tokens = topology, config, max_tokens
        self.slicing = Slicing(topology.cp, topology.cp_rank, topology.tp if config.sequence_parallel else 1)

    def split(self, batch: PackedBatch) -> list[PackedBatch]:
        """The micro-batches, each with the places of its tokens, and as many as the schedule can work with.

        Ranks that exchange tokens (expert parallel) need the same number, and the interleaved pipeline as many as it
        has stages. Where there are too few sequences, some are computed again without being in the loss.
        """
        batch = batch.with_fields(**{PLACE: torch.arange(batch.num_tokens)})
        interleaved = self.topology.vpp > 1
        split = micro_batches(batch, self.max_tokens, self.topology.pp if interleaved else 1)
        count = max(len(split), self.topology.pp if interleaved else 1)
        if self.topology.ep > 1:
            count = self._most(count)
        if interleaved:
            self.config.microbatch_group_size_per_vp_stage = _group_size(count, self.topology.pp)
        parts = [batch.select(indices) for indices in split]
        return parts + [_filler(parts[0])] * (count - len(parts))

    def of(self, split: list[PackedBatch], dtype: torch.dtype) -> Iterator[MicroBatch]:
        """The micro-batches on the device, planned for attention in ``dtype``."""
        device = self.topology.device
        for batch in split:
            packed = PackedSequences.plan(batch.cu_seqlens, device, dtype, self.slicing)
            yield MicroBatch(batch.to(device), packed, Selection.of(batch, packed), self._places(batch, packed))

    def _places(self, batch: PackedBatch, packed: PackedSequences) -> Tensor | None:
        if not self.config.num_moe_experts:
            return None
        places = batch[PLACE].to(packed.tokens.device)[packed.tokens].masked_fill(~packed.real, -1)
        return places.chunk(self.slicing.tp)[self.topology.tp_rank] if self.slicing.tp > 1 else places

    def _most(self, count: int) -> int:
        box = torch.tensor(count, device=self.topology.device)
        dist.all_reduce(box, dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
        return int(box)


def _filler(batch: PackedBatch) -> PackedBatch:
    """The shortest unit of a batch, counted nowhere."""
    lengths = batch.unit_lengths
    filler = batch.select(batch.units[lengths.index(min(lengths))])
    nowhere = {PLACE: torch.full_like(filler[PLACE], -1), "loss_mask": torch.zeros_like(filler["loss_mask"])}
    return filler.with_fields(**nowhere)


def _group_size(count: int, stages: int) -> int:
    """Micro-batches that go through one chunk after another: as few as the interleaved schedule accepts."""
    return next(n for n in range(stages, count + 1) if count % n == 0 or count % n >= stages)
