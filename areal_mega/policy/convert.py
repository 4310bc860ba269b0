"""Weights from one form on disk to another, and what differs between two.

A place is a Hugging Face folder, a training checkpoint, or a run directory, which stands for its latest checkpoint.
All ranks call these functions together; one process is enough while the model fits into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from areal_mega.config.errors import UserError
from areal_mega.config.options import PolicyOptions
from areal_mega.policy import checkpoints
from areal_mega.policy.checkpoint_files import SHARD_BYTES, HFWeights, write_folder
from areal_mega.policy.gpt import Head
from areal_mega.policy.model import MegatronModel
from areal_mega.policy.spec import read_config
from areal_mega.runtime.checkpoint_folders import FOLDER, CheckpointFolders
from areal_mega.runtime.distributed import Topology

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def checkpoint_at(place: Path) -> Path | None:
    """The training checkpoint at a place; None where it is a Hugging Face folder."""
    if (place / checkpoints.TRAINER).is_file():
        return place
    return CheckpointFolders(place).latest() if (place / FOLDER).is_dir() else None


def to_hugging_face(
    source: Path,
    target: Path,
    topology: Topology,
    *,
    model: str = "policy",
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder; dtype: of its tensors, None: as they are.

    Raises:
        UserError: the source is damaged, or holds no such model.
    """
    checkpoint = checkpoint_at(source)
    if checkpoint:
        kind = DTYPES[dtype] if dtype else None
        read_checkpoint(checkpoint, model, topology).save(target, kind, shard_bytes)
        return
    hf, files = read_config(source), HFWeights(source)
    if dtype:
        hf.dtype = DTYPES[dtype]
    names = files.names()[topology.rank :: topology.world]
    tensors = ((n, files.whole(n).to(DTYPES[dtype]) if dtype else files.whole(n)) for n in names)
    write_folder(target, hf, tensors, source, shard_bytes, topology.rank, topology.gather)


def to_training(source: Path, target: Path, topology: Topology, *, model: str, dtype: str | None = None) -> Path:
    """Write a checkpoint of step 0, without an optimizer, into the run directory ``target``; where it is."""
    head: Head = "value" if model == "critic" else "logprob"
    built = MegatronModel(
        topology, str(source), PolicyOptions(), dtype=dtype or "float32", optimizer=None, head=head, seed=1
    )
    folders = CheckpointFolders(target)
    writer = checkpoints.CheckpointWriter(topology, folders, keep=1)
    writer.save(0, {model: built}, {})
    writer.finish()
    return folders.path(0)


def read_checkpoint(checkpoint: Path, model: str, topology: Topology) -> MegatronModel:
    """The weights of one model of a training checkpoint.

    Raises:
        UserError: the checkpoint is damaged, or has no such model.
    """
    problems = checkpoints.broken(checkpoint, topology)
    if problems:
        raise UserError("The checkpoint is damaged:\n  - " + "\n  - ".join(problems))
    held = checkpoints.read_trainer(checkpoint)["models"]
    if model not in held:
        raise UserError(f"{checkpoint} has no {model}; it holds {', '.join(held)}")
    built = MegatronModel(
        topology,
        str(checkpoint / model),
        PolicyOptions(),
        dtype=held[model]["dtype"],
        optimizer=None,
        head=held[model]["head"],
        seed=1,
        load_weights=False,
    )
    checkpoints.load(checkpoint, {model: built}, topology)
    return built


def differences(a: Path, b: Path, topology: Topology, model: str = "policy") -> Iterator[str]:
    """What differs between two places, element by element, in sentences; on the main rank.

    A tensor of ``a`` is compared after rounding to the type that it has in ``b``.
    """
    left, right = _tensors(a, model, topology), _tensors(b, model, topology)
    if not topology.is_main:
        return
    for name in sorted(left.keys() ^ right.keys()):
        yield f"{name}: only in {a if name in left else b}"
    for name in left:
        if name in right:
            yield from _difference(name, left[name], right[name])


def _difference(name: str, x: Tensor, y: Tensor) -> Iterator[str]:
    if x.shape != y.shape:
        yield f"{name}: shape {tuple(x.shape)} and {tuple(y.shape)}"
        return
    x = x.to(y.dtype)
    count = int((x != y).sum())
    if count:
        largest = float((x.double() - y.double()).abs().max())
        yield f"{name}: {count} of {x.numel()} elements differ, by {largest:.3g} at most"


class _Files(dict[str, Tensor]):
    """A Hugging Face folder's tensors by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = HFWeights(folder)
        tied = read_config(folder).tie_word_embeddings
        super().__init__((n, torch.empty(0)) for n in self._files.names() if not (tied and n == "lm_head.weight"))

    def __getitem__(self, name: str) -> Tensor:
        return self._files.whole(name)


def _tensors(place: Path, model: str, topology: Topology) -> dict[str, Tensor]:
    checkpoint = checkpoint_at(place)
    return dict(read_checkpoint(checkpoint, model, topology).export()) if checkpoint else _Files(place)
