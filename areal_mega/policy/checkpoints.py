"""Training checkpoints: written beside the training, read under any layout.

A checkpoint is a folder:

    state/         weights, optimizers, random generators: Megatron's ``dist_checkpointing`` in the format torch_dist
    trainer.json   the step, the place in the data, and what a run must agree on to go on from here
    policy/ ...    each model's config.json and tokenizer, so that it can be converted without the original
    manifest.json  every file's checksum, written last
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy, TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.api import CheckpointException

from areal_mega.config.errors import UserError
from areal_mega.policy import model_state
from areal_mega.policy.checkpoint_files import write_config
from areal_mega.policy.model import MegatronModel
from areal_mega.runtime import manifest
from areal_mega.runtime.checkpoint_folders import CheckpointFolders
from areal_mega.runtime.distributed import Topology

STATE = "state"
TRAINER = "trainer.json"
_CHECKSUMS = ".checksums-"

Models = Mapping[str, MegatronModel]


class CheckpointWriter:
    """Writes checkpoints while the training goes on. All ranks call its methods together."""

    def __init__(self, topology: Topology, folders: CheckpointFolders, keep: int) -> None:
        """keep: how many checkpoints stay; older ones are removed."""
        self.topology, self.folders, self.keep = topology, folders, keep
        self._queue = AsyncCallsQueue()
        self._strategy = FullyParallelSaveStrategyWrapper(
            TorchDistSaveShardedStrategy("torch_dist", 1),
            parallel_state.get_data_parallel_group(with_context_parallel=True),
            do_cache_distribution=True,
        )
        self._checked = False

    def save(self, step: int, models: Models, trainer: Mapping[str, Any]) -> None:
        """Begin a checkpoint of this moment: a forked process writes it, from its own copy of the memory.

        A checkpoint that is still being written is waited for first. trainer: what `trainer.json` is to hold, the
        same for all ranks; the models' part is added.
        """
        self.finish()
        made = self._prepare(step, models, trainer) if self.topology.is_main else None
        partial_folder: Path = self.topology.broadcast(made)
        state: dict[str, Any] = model_state.random_state(self.topology)
        for name, model in models.items():
            state[name] = model_state.sharded_state(name, model, optimizer=model.trains, loading=False)
        # Megatron would start a manager process for this, which outlives a killed run.
        filesystem_async._results_queue = _ResultFile(partial_folder / f".results-{self.topology.rank}")
        request = dist_checkpointing.save(
            state,
            str(partial_folder / STATE),
            self._strategy,
            validate_access_integrity=not self._checked,
            async_sharded_save=True,
        )
        self._checked = True
        if request.async_fn is not None:  # this rank has something to write
            checksums = partial_folder / f"{_CHECKSUMS}{self.topology.rank}"
            request = request._replace(async_fn=partial(_write, request.async_fn, checksums))
        request.add_finalize_fn(partial(self._publish, partial_folder, step))
        self._queue.schedule_async_request(request)

    def poll(self) -> None:
        """Put a checkpoint in its place if it has been written; does not wait.

        Raises:
            RuntimeError: it could not be written.
        """
        self._finalize(blocking=False)

    def finish(self) -> None:
        """Wait until nothing is being written.

        Raises:
            RuntimeError: it could not be written.
        """
        self._finalize(blocking=True)

    def _finalize(self, blocking: bool) -> None:
        try:
            self._queue.maybe_finalize_async_calls(blocking)
        except (Exception, CheckpointException) as error:  # torch's is no Exception
            raise RuntimeError(f"A checkpoint in {self.folders.root} could not be written: {error}") from error

    def _prepare(self, step: int, models: Models, trainer: Mapping[str, Any]) -> Path:
        folder = self.folders.begin(step)
        (folder / STATE).mkdir()
        described = {}
        for name, model in models.items():
            write_config(folder / name, model.hf, model.hf_path)
            described[name] = {"head": model.head, "dtype": model.dtype_name, "optimizer": model.trains}
        content = {"step": step, **trainer, "models": described, "layout": _layout(self.topology)}
        (folder / TRAINER).write_text(json.dumps(content, indent=1) + "\n")
        return folder

    def _publish(self, folder: Path, step: int) -> None:
        if not self.topology.is_main:
            return
        known: dict[str, manifest.Entry] = {}
        for file in folder.glob(f"{_CHECKSUMS}*"):
            known |= json.loads(file.read_text())
        for leftover in folder.glob(".[cr]*-*"):
            leftover.unlink()
        self.folders.prune(self.keep, self.folders.publish(folder, step, known))


def load(folder: Path, models: Models, topology: Topology) -> None:
    """Fill models from a checkpoint that was saved under any layout; all ranks together.

    A model is taken as it was saved: without an optimizer in the checkpoint, it keeps its new one. The random
    generators are restored where the layout is that of the checkpoint.

    Raises:
        UserError: the checkpoint has no such model.
    """
    trainer = read_trainer(folder)
    state: dict[str, Any] = {}
    for name, model in models.items():
        if name not in trainer["models"]:
            raise UserError(f"{folder} has no {name}; it holds {', '.join(trainer['models'])}")
        optimizer = model.trains and trainer["models"][name]["optimizer"]
        state[name] = model_state.sharded_state(name, model, optimizer=optimizer, loading=True)
    same_layout = trainer["layout"] == _layout(topology)
    if same_layout:
        state |= model_state.random_state(topology)
    strategy = FullyParallelLoadStrategyWrapper(
        TorchDistLoadShardedStrategy(), parallel_state.get_data_parallel_group(with_context_parallel=True)
    )
    loaded = dist_checkpointing.load(state, str(folder / STATE), strategy)
    for name, model in models.items():
        model_state.load_state(model, loaded[name])
    if same_layout:
        model_state.load_random_state(loaded)


def _layout(topology: Topology) -> dict[str, Any]:
    return {**asdict(topology.parallel), "ranks": topology.world}


def read_trainer(folder: Path) -> dict[str, Any]:
    """The content of `trainer.json`.

    Raises:
        UserError: ``folder`` is no checkpoint.
    """
    try:
        return json.loads((folder / TRAINER).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a training checkpoint: {error}") from error


class _ResultFile:
    """How the forked writer tells its rank what it wrote; made like the queue that Megatron uses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, results: Any) -> None:
        temporary = self.path.with_suffix(".partial")
        temporary.write_bytes(pickle.dumps(results))
        temporary.replace(self.path)

    def get_nowait(self) -> Any:
        try:
            return pickle.loads(self.path.read_bytes())
        except FileNotFoundError:
            raise Empty from None


def _write(write: Callable, checksums: Path, rank: int, buckets: list, results: _ResultFile) -> None:
    """In the forked process: write this rank's files, then read them again for their checksums."""
    write(rank, buckets, results)
    entries = {f"{STATE}/{name}": manifest.entry(Path(path)) for path, name, _ in buckets if Path(path).is_file()}
    checksums.write_text(json.dumps(entries))


def broken(folder: Path, topology: Topology) -> list[str]:
    """What is wrong with a checkpoint's files; each rank reads some of them, all ranks get all answers."""
    mine = list(manifest.problems(folder, topology.rank, topology.world))
    return [problem for problems in topology.gather(mine) for problem in problems]
