"""Weights between a Megatron model and Hugging Face names, through the table in `weight_table`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

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


def named_parameters(chunks: Sequence[PackedGPT]) -> dict[str, torch.nn.Parameter]:
    """The parameters of a stage's model chunks by Megatron name, with layer numbers of the whole model."""
    return {name: parameter for gpt in chunks for name, parameter in _of_chunk(gpt)}


def _of_chunk(gpt: PackedGPT) -> Iterator[tuple[str, torch.nn.Parameter]]:
    numbers = [layer.layer_number - 1 for layer in gpt.decoder.layers]
    for name, parameter in gpt.named_parameters():
        yield re.sub(r"\.layers\.(\d+)\.", lambda m: f".layers.{numbers[int(m[1])]}.", name), parameter


@torch.no_grad()
def load(chunks: Sequence[PackedGPT], hf: PretrainedConfig, folder: str, topology: Topology) -> None:
    """Fill this rank's parameters from a HF folder, reading only the slices that it holds.

    A critic's value head keeps its initial value where the folder has none.

    Raises:
        UserError: a missing, misshapen or unreadable tensor or file.
    """
    files = HFWeights(folder)
    for name, parameter in named_parameters(chunks).items():
        if name == VALUE_HEAD and VALUE_HEAD not in files:
            continue
        parts = [files.read(p) for p in pieces(name, parameter.shape, hf, topology.tp, topology.tp_rank)]
        rows = sum(len(part) for part in parts)
        parameter[:rows] = torch.cat(parts).to(parameter)
        parameter[rows:] = 0


def export(tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors in HF names on rank 0, from each rank's ``tensors`` in Megatron names.

    tensors: shaped like the parameters of the same name (weights, or their gradients). All ranks of DP
    replica 0 must iterate to the end; only rank 0 gets anything. Tensors are gathered over TP on each stage,
    then sent to the first stage, one message per bucket of tensors.
    """
    if topology.dp_rank or topology.cp_rank:
        return
    tied_copy = hf.tie_word_embeddings and topology.pp > 1
    own = {k: v for k, v in tensors.items() if not (tied_copy and k == "output_layer.weight")}
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


def _buckets(layout: list[_Entry]) -> Iterator[list[_Entry]]:
    """Runs of tensors of one type, none above `BUCKET` elements (unless a single tensor is)."""
    bucket: list[_Entry] = []
    size = 0
    for name, shape, dtype in layout:
        if bucket and (size + shape.numel() > BUCKET or dtype != bucket[0][2]):
            yield bucket
            bucket, size = [], 0
        bucket.append((name, shape, dtype))
        size += shape.numel()
    if bucket:
        yield bucket


def _gather_tp(tensors: list[Tensor], topology: Topology) -> Tensor | None:
    """``[tp, n]`` on the first TP rank, None on the others."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    if topology.tp == 1:
        return flat[None]
    group = parallel_state.get_tensor_model_parallel_group()
    first = dist.get_process_group_ranks(group)[0]
    gathered = flat.new_empty(topology.tp, flat.numel()) if topology.tp_rank == 0 else None
    dist.gather(flat, list(gathered) if gathered is not None else None, dst=first, group=group)
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
