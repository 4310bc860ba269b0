"""Weights between a Megatron model and Hugging Face names, through the layouts of `resharding`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from transformers import PretrainedConfig

from areal_mega.policy.checkpoint_files import HFWeights
from areal_mega.policy.gpt import PackedGPT
from areal_mega.resharding.coordinates import Layout
from areal_mega.resharding.layouts import VALUE_HEAD, MegatronPlace, file_layout, megatron_layout
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


def place(topology: Topology) -> MegatronPlace:
    """Where this rank is in the layout of the weights."""
    return MegatronPlace(tp=topology.tp, tp_rank=topology.tp_rank, pp=topology.pp, pp_rank=topology.pp_rank)


@torch.no_grad()
def load(gpt: PackedGPT, hf: PretrainedConfig, folder: str, topology: Topology) -> None:
    """Fill this rank's parameters from a HF folder, reading only the slices that it holds.

    A critic's value head keeps its initial value where the folder has none.

    Raises:
        UserError: a missing, misshapen or unreadable tensor or file.
    """
    files = HFWeights(folder)
    critic = gpt.head == "value"
    layout = megatron_layout(hf, place(topology), critic)
    shapes = file_layout(hf, critic).shapes
    for name, parameter in named_parameters(gpt).items():
        if name == VALUE_HEAD and VALUE_HEAD not in files:
            continue
        parameter.zero_()  # the padding
        for piece in layout.by_parameter[name]:
            piece.view(parameter).copy_(files.read(piece.box, shapes[piece.box.name]))


def export(tensors: Mapping[str, Tensor], hf: PretrainedConfig, topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors in HF names on rank 0, from each rank's ``tensors`` in Megatron names.

    tensors: shaped like the parameters of the same name (weights, or their gradients). All ranks of DP
    replica 0 must iterate to the end; only rank 0 gets anything. Tensors are gathered over TP on each stage,
    then sent to the first stage, one message per bucket of tensors.
    """
    if topology.dp_rank:
        return
    tied_copy = hf.tie_word_embeddings and topology.pp > 1
    own = {k: v for k, v in tensors.items() if not (tied_copy and k == "output_layer.weight")}
    group = parallel_state.get_pipeline_model_parallel_group()
    entries: list[list[_Entry]] = [[] for _ in range(topology.pp)]
    dist.all_gather_object(entries, [(k, v.shape, v.dtype) for k, v in own.items()], group=group)
    critic = any(name == VALUE_HEAD for stage in entries for name, _, _ in stage)
    shapes = file_layout(hf, critic).shapes
    for stage, tensors_there in enumerate(entries):
        places = [replace(place(topology), tp_rank=rank, pp_rank=stage) for rank in range(topology.tp)]
        layouts = [megatron_layout(hf, there, critic) for there in places]
        for bucket in _buckets(tensors_there):
            here = topology.pp_rank == stage
            flat = _gather_tp([own[name] for name, _, _ in bucket], topology) if here else None
            if stage and topology.tp_rank == 0:
                flat = _to_first_stage(flat, stage, bucket, topology)
            if topology.is_main:
                assert flat is not None
                yield from _assemble(bucket, flat, layouts, shapes)


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


def _assemble(
    bucket: list[_Entry], flat: Tensor, layouts: list[Layout], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """Put the pieces of every TP rank in their places.

    flat: ``[tp, n]``, the bucket's tensors end to end. layouts: of each TP rank. shapes: of the whole tensors.
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
