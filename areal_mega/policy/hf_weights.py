"""Weights between a Megatron model and Hugging Face names, through the layouts of `resharding`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from transformers import PretrainedConfig

from areal_mega.policy.checkpoint_files import HFWeights
from areal_mega.policy.gpt import PackedGPT
from areal_mega.resharding.coordinates import Layout
from areal_mega.resharding.layouts import SCORE, VALUE_HEAD, MegatronPlace, file_layout, megatron_layout
from areal_mega.runtime import extensions
from areal_mega.runtime.distributed import Topology

BUCKET = 64 << 20  # elements gathered in one message

_Entry = tuple[str, torch.Size, torch.dtype]  # Megatron name, local shape, type


def named_parameters(chunks: Sequence[PackedGPT]) -> dict[str, torch.nn.Parameter]:
    """The parameters of a stage's model chunks by Megatron name, with layer numbers of the whole model."""
    return {_global_name(gpt, name): parameter for gpt in chunks for name, parameter in gpt.named_parameters()}


def named_weights(chunks: Sequence[PackedGPT]) -> dict[str, Tensor]:
    """The parameters, and the routers' biases, which no gradient moves."""
    buffers = {
        _global_name(gpt, name): buffer
        for gpt in chunks
        for name, buffer in gpt.named_buffers()
        if name.endswith("router.expert_bias")
    }
    return {**named_parameters(chunks), **buffers}


def place(topology: Topology) -> MegatronPlace:
    """Where this rank is in the layout of the weights."""
    t = topology
    return MegatronPlace(
        tp=t.tp,
        tp_rank=t.tp_rank,
        pp=t.pp,
        pp_rank=t.pp_rank,
        vpp=t.vpp,
        ep=t.ep,
        ep_rank=t.ep_rank,
        etp=t.etp,
        etp_rank=t.etp_rank,
        first_layers=t.parallel.first_layers,
        last_layers=t.parallel.last_layers,
        grouped_experts=extensions.transformer_engine(),
    )


@torch.no_grad()
def load(chunks: Sequence[PackedGPT], hf: PretrainedConfig, folder: str, topology: Topology) -> None:
    """Fill this rank's parameters from a HF folder, reading only the slices that it holds.

    A critic's value head keeps its initial value where the folder has none.

    Raises:
        UserError: a missing, misshapen or unreadable tensor or file.
    """
    weights = named_weights(chunks)
    total = sum(weight.nbytes for weight in weights.values())
    files = HFWeights(folder, bar_for=total if topology.is_main else 0)
    critic = chunks[0].head == "value"
    layout = megatron_layout(hf, place(topology), critic)
    shapes = file_layout(hf, critic).shapes
    used = set()
    for name, weight in weights.items():
        if name == VALUE_HEAD and SCORE not in files:
            continue
        weight.zero_()  # the padding
        for piece in layout.by_parameter[name]:
            piece.view(weight).copy_(files.read(piece.box, shapes[piece.box.name]))
            used.add(piece.box.name)
    files.check_all_used(set().union(*topology.gather(used)))


def export_shares(
    tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors in HF names, each of them on one of the ranks that hold parts of it: about equal bytes for each.

    tensors: as for `export`. Every rank iterates to the end, and holds one bucket of tensors at a time; nothing
    goes from stage to stage.
    """
    own = _without_copies(tensors, hf, topology)
    critic = _is_critic(own, topology)
    shapes = file_layout(hf, critic).shapes
    for holders in _holders(topology):
        if holders.takes_part:
            mine = {k: v for k, v in own.items() if holders.have(k)}
            yield from _export_shares(mine, holders, hf, critic, shapes)


def _export_shares(
    own: Mapping[str, Tensor],
    holders: _Holders,
    hf: PretrainedConfig,
    critic: bool,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, Tensor]]:
    layouts = [megatron_layout(hf, there, critic) for there in holders.places]
    entries = [(k, v.shape, v.dtype) for k, v in own.items()]
    limit = min(BUCKET, sum(shape.numel() for _, shape, _ in entries) // (4 * len(layouts)))
    loads = [0] * len(layouts)
    for bucket in _buckets(entries, limit):
        writer = loads.index(min(loads))
        loads[writer] += sum(shape.numel() * dtype.itemsize for _, shape, dtype in bucket)
        flat = _gather([own[name] for name, _, _ in bucket], holders, writer)
        if flat is not None:
            yield from _assemble(bucket, flat, layouts, shapes)


def export(tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors in HF names on rank 0, from each rank's ``tensors`` in Megatron names.

    tensors: shaped like the parameters of the same name (weights, or their gradients). All ranks must iterate to
    the end; only rank 0 gets anything. On each stage tensors are gathered over the ranks that hold parts of them (TP,
    or ETP x EP for experts), then sent to the first stage, one message per bucket of tensors.
    """
    own = _without_copies(tensors, hf, topology)
    critic = _is_critic(own, topology)
    shapes = file_layout(hf, critic).shapes
    for holders in _holders(topology):
        yield from _export({k: v for k, v in own.items() if holders.have(k)}, holders, hf, critic, shapes, topology)


@dataclass(frozen=True)
class _Holders:
    """The ranks of a stage that together hold its tensors of one kind, once: places of each, in the group's order.

    takes_part: whether this rank is one of them. leads: whether it is the first of them on its stage.
    """

    experts: bool
    group: dist.ProcessGroup
    places: list[MegatronPlace]
    takes_part: bool

    def have(self, name: str) -> bool:
        return self.experts == (".mlp.experts." in name)

    @property
    def leads(self) -> bool:
        return self.takes_part and self.group.rank() == 0


def _holders(t: Topology) -> Iterator[_Holders]:
    here = place(t)
    dense = [replace(here, tp_rank=rank) for rank in range(t.tp)]
    yield _Holders(False, parallel_state.get_tensor_model_parallel_group(), dense, not (t.dp_rank or t.cp_rank))
    experts = [replace(here, ep_rank=ep, etp_rank=etp) for ep in range(t.ep) for etp in range(t.etp)]
    group = parallel_state.get_expert_tensor_and_model_parallel_group()
    yield _Holders(True, group, experts, not t.edp_rank)


def _export(
    own: Mapping[str, Tensor],
    holders: _Holders,
    hf: PretrainedConfig,
    critic: bool,
    shapes: Mapping[str, tuple[int, ...]],
    topology: Topology,
) -> Iterator[tuple[str, Tensor]]:
    if not holders.takes_part:
        return
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    entries: list[list[_Entry]] = [[] for _ in range(topology.pp)]
    dist.all_gather_object(entries, [(k, v.shape, v.dtype) for k, v in own.items()], group=pipeline)
    for stage, tensors_there in enumerate(entries):
        layouts = [megatron_layout(hf, replace(there, pp_rank=stage), critic) for there in holders.places]
        for bucket in _buckets(tensors_there):
            here = topology.pp_rank == stage
            flat = _gather([own[name] for name, _, _ in bucket], holders) if here else None
            if stage and holders.leads:
                flat = _to_first_stage(flat, stage, bucket, len(layouts), topology)
            if topology.is_main:
                assert flat is not None
                yield from _assemble(bucket, flat, layouts, shapes)


def _global_name(gpt: PackedGPT, name: str) -> str:
    numbers = [layer.layer_number - 1 for layer in gpt.decoder.layers]
    return re.sub(r"\.layers\.(\d+)\.", lambda m: f".layers.{numbers[int(m[1])]}.", name)


def _without_copies(tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology) -> dict[str, Tensor]:
    """All but the last stage's copy of a tied embedding."""
    tied_copy = hf.tie_word_embeddings and topology.pp > 1
    return {k: v for k, v in tensors.items() if not (tied_copy and k == "output_layer.weight")}


def _is_critic(own: Mapping[str, Tensor], topology: Topology) -> bool:
    """Whether the last stage has a value head."""
    if topology.pp == 1:
        return VALUE_HEAD in own
    box = [VALUE_HEAD in own]
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast_object_list(box, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return box[0]


def _buckets(layout: list[_Entry], limit: int = BUCKET) -> Iterator[list[_Entry]]:
    """Runs of tensors of one type, none above ``limit`` elements (unless a single tensor is)."""
    bucket: list[_Entry] = []
    size = 0
    for name, shape, dtype in layout:
        if bucket and (size + shape.numel() > limit or dtype != bucket[0][2]):
            yield bucket
            bucket, size = [], 0
        bucket.append((name, shape, dtype))
        size += shape.numel()
    if bucket:
        yield bucket


def _gather(tensors: list[Tensor], holders: _Holders, to: int = 0) -> Tensor | None:
    """``[holders, n]`` on holder ``to``, None on the others."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    if len(holders.places) == 1:
        return flat[None]
    destination = dist.get_process_group_ranks(holders.group)[to]
    receives = holders.group.rank() == to
    gathered = flat.new_empty(len(holders.places), flat.numel()) if receives else None
    dist.gather(flat, list(gathered) if gathered is not None else None, dst=destination, group=holders.group)
    return gathered


def _to_first_stage(
    flat: Tensor | None, stage: int, bucket: list[_Entry], count: int, topology: Topology
) -> Tensor | None:
    """A later stage's ``flat`` ``[count, n]`` on the first stage, None on the others."""
    group = parallel_state.get_pipeline_model_parallel_group()
    ranks = dist.get_process_group_ranks(group)
    if topology.pp_rank == stage:
        assert flat is not None
        dist.send(flat, ranks[0], group=group)
    if topology.pp_rank != 0:
        return None
    size = sum(shape.numel() for _, shape, _ in bucket)
    received = torch.empty(count, size, dtype=bucket[0][2], device=topology.device)
    dist.recv(received, ranks[stage], group=group)
    return received


def _assemble(
    bucket: list[_Entry], flat: Tensor, layouts: list[Layout], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """Put the pieces of every holder in their places.

    flat: ``[holders, n]``, the bucket's tensors end to end. layouts: of each holder. shapes: of the whole tensors.
    """
    sizes = [shape.numel() for _, shape, _ in bucket]
    for (name, shape, dtype), shards in zip(bucket, flat.split(sizes, dim=1), strict=True):
        whole: dict[str, Tensor] = {}
        for layout, shard in zip(layouts, shards, strict=True):
            for piece in layout.by_parameter[name]:
                tensor = piece.box.name
                if tensor not in whole:
                    whole[tensor] = torch.empty(shapes[tensor], dtype=dtype, device=flat.device)
                whole[tensor][piece.box.slices] = piece.view(shard.view(shape))
        yield from whole.items()
