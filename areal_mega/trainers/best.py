"""The model of the best evaluation so far."""

from __future__ import annotations

import json
from pathlib import Path

from areal_mega.policy.model import MegatronModel
from areal_mega.runtime.distributed import Topology


class BestModel:
    """Keeps it in ``best/`` of the run directory, a Hugging Face folder, with ``evaluation.json`` in it.

    All ranks make it and call `offer` together. A run that goes on keeps what it had.
    """

    def __init__(self, directory: Path, topology: Topology) -> None:
        self._folder, self._topology = directory / "best", topology
        file = self._folder / "evaluation.json"
        self._accuracy: float = json.loads(file.read_text())["accuracy"] if file.exists() else -1.0

    def offer(self, policy: MegatronModel, step: int, accuracy: float | None) -> None:
        """Keep the policy if its accuracy is above all before. accuracy: on the main rank."""
        better = accuracy is not None and accuracy > self._accuracy
        if not self._topology.broadcast(better if self._topology.is_main else None):
            return
        policy.save(self._folder)
        if accuracy is not None:  # the main rank
            self._accuracy = accuracy
            (self._folder / "evaluation.json").write_text(json.dumps({"step": step, "accuracy": accuracy}) + "\n")
