"""Weights between a Megatron model and Hugging Face names, through the table in `weight_table`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from transformers import PretrainedConfig

from areal_mega.policy.checkpoint_files import HFWeights
from areal_mega.policy.gpt import PackedGPT
from areal_mega.policy.weight_table import VALUE_HEAD, pieces
from areal_mega.runtime.distributed import Topology

BUCKET = 64 << 20  # elements gathered in one message

_Entry = tuple[str, torch.Size, torch.dtype]  # Megatron name, local shape, type


def named_parameters(gpt: PackedGPT) -> dict[str, torch.nn.Parameter]:
    """The stage's parameters by Megatron name, with layer numbers of the whole model."""
    numbers = [layer.layer_number - 1 for layer in gpt.decoder.layers]
    return {
        re.sub(r"\.layers\.(\d+)\.", lambda m: f".layers.{numbers[int(m[1])]}.", name): parameter
        for name, parameter in gpt.named_parameters()
    }


@torch.no_grad()
def load(gpt: PackedGPT, hf: PretrainedConfig, folder: str, topology: Topology) -> None:
    """Fill this rank's parameters from a HF folder, reading only the slices that it holds.

    A critic's value head keeps its initial value where the folder has none.

    Raises:
        UserError: a missing, misshapen or unreadable tensor or file.
    """
    parameters = named_parameters(gpt)
    total = sum(parameter.nbytes for parameter in parameters.values())
    files = HFWeights(folder, bar_for=total if topology.is_main else 0)
    used = set()
    for name, parameter in parameters.items():
        if name == VALUE_HEAD and VALUE_HEAD not in files:
            continue
        plan = pieces(name, parameter.shape, hf, topology.tp, topology.tp_rank)
        parts = [files.read(p) for p in plan]
        rows = sum(len(part) for part in parts)
        parameter[:rows] = torch.cat(parts).to(parameter)
        parameter[rows:] = 0
        used |= {p.name for p in plan}
    files.check_all_used(set().union(*topology.gather(used)))


def export_shares(
    tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors in HF names, each of them on one rank of DP replica 0: about equal bytes for each TP rank.

    tensors: as for `export`. Every rank iterates to the end, and holds one bucket of tensors at a time; nothing
    goes from stage to stage.
    """
    if topology.dp_rank:
        return
    own = _without_copies(tensors, hf, topology)
    layout = [(k, v.shape, v.dtype) for k, v in own.items()]
    limit = min(BUCKET, sum(shape.numel() for _, shape, _ in layout) // (4 * topology.tp))
    loads = [0] * topology.tp
    for bucket in _buckets(layout, limit):
        writer = loads.index(min(loads))
        loads[writer] += sum(shape.numel() * dtype.itemsize for _, shape, dtype in bucket)
        flat = _gather_tp([own[name] for name, _, _ in bucket], topology, writer)
        if topology.tp_rank == writer:
            assert flat is not None
            yield from _assemble(bucket, flat, hf, topology.tp)


def export(tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors in HF names on rank 0, from each rank's ``tensors`` in Megatron names.

    tensors: shaped like the parameters of the same name (weights, or their gradients). All ranks of DP
    replica 0 must iterate to the end; only rank 0 gets anything. Tensors are gathered over TP on each stage,
    then sent to the first stage, one message per bucket of tensors.
    """
    if topology.dp_rank:
        return
    own = _without_copies(tensors, hf, topology)
    group = parallel_state.get_pipeline_model_parallel_group()
    layouts: list[list[_Entry]] = [[] for _ in range(topology.pp)]
    dist.all_gather_object(layouts, [(k, v.shape, v.dtype) for k, v in own.items()], group=group)
    for stage, layout in enumerate(layouts):
        for bucket in _buckets(layout):
            here = topology.pp_rank == stage
            flat = _gather_tp([own[name] for name, _, _ in bucket], topology) if here else None
            if stage and topology.tp_rank == 0:
                flat = _to_first_stage(flat, stage, bucket, topology)
            if topology.is_main:
                assert flat is not None
                yield from _assemble(bucket, flat, hf, topology.tp)


def _without_copies(tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology) -> dict[str, Tensor]:
    """All but the last stage's copy of a tied embedding."""
    tied_copy = hf.tie_word_embeddings and topology.pp > 1
    return {k: v for k, v in tensors.items() if not (tied_copy and k == "output_layer.weight")}


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


def _gather_tp(tensors: list[Tensor], topology: Topology, to: int = 0) -> Tensor | None:
    """``[tp, n]`` on TP rank ``to``, None on the others."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    if topology.tp == 1:
        return flat[None]
    group = parallel_state.get_tensor_model_parallel_group()
    destination = dist.get_process_group_ranks(group)[to]
    gathered = flat.new_empty(topology.tp, flat.numel()) if topology.tp_rank == to else None
    dist.gather(flat, list(gathered) if gathered is not None else None, dst=destination, group=group)
    return gathered


def _to_first_stage(flat: Tensor | None, stage: int, bucket: list[_Entry], topology: Topology) -> Tensor | None:
    """A later stage's ``flat`` ``[tp, n]`` on the first stage, None on the others."""
    group = parallel_state.get_pipeline_model_parallel_group()
    ranks = dist.get_process_group_ranks(group)
    if topology.pp_rank == stage:
        assert flat is not None
        dist.send(flat, ranks[0], group=group)
    if topology.pp_rank != 0:
        return None
    size = sum(shape.numel() for _, shape, _ in bucket)
    received = torch.empty(topology.tp, size, dtype=bucket[0][2], device=topology.device)
    dist.recv(received, ranks[stage], group=group)
    return received


def _assemble(bucket: list[_Entry], flat: Tensor, hf: PretrainedConfig, tp: int) -> Iterator[tuple[str, Tensor]]:
    """Put the pieces of every TP rank in their places. flat: ``[tp, n]``, the bucket's tensors end to end."""
    sizes = [shape.numel() for _, shape, _ in bucket]
    for (name, shape, dtype), shards in zip(bucket, flat.split(sizes, dim=1), strict=True):
        whole: dict[str, Tensor] = {}
        for rank in range(tp):
            offset = 0
            local = shards[rank].view(shape)
            for piece in pieces(name, shape, hf, tp, rank):
                rows = piece.stop - piece.start if piece.dim == 0 else len(local)
                if piece.name not in whole:
                    whole[piece.name] = torch.empty(piece.shape, dtype=dtype, device=flat.device)
                place = whole[piece.name].narrow(piece.dim, piece.start, piece.stop - piece.start)
                place.copy_(local[offset : offset + rows])
                offset += rows
        yield from whole.items()
