"""Nothing is lost: where a resumed run goes on, and the checkpoints that the next one will."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import CommonOptions
from areal_mega.policy import checkpoints
from areal_mega.policy.fingerprint import fingerprint
from areal_mega.policy.model import MegatronModel
from areal_mega.policy.spec import read_config
from areal_mega.runtime import resume
from areal_mega.runtime.checkpoint_folders import CheckpointFolders, step_of
from areal_mega.runtime.distributed import Topology

# Options that must stay as they were: with another value the run would not be the same run. All others hold as
# they are given now: more steps, another layout, another learning rate.
FIXED = ("program", "seed", "model.dtype", "data.shuffle", "algorithm.advantage", "loss")
# What a model's config.json may say differently of the same model.
_ASIDE = ("_name_or_path", "architectures", "dtype", "transformers_version")


class Recovery:
    """The checkpoints of a run. All ranks make it and call its methods together.

    step: after which the run goes on, 0 at its beginning. progress: what the trainer said it had to remember then.
    """

    def __init__(self, options: CommonOptions, topology: Topology, directory: Path, models: Mapping[str, str]) -> None:
        """Find the checkpoint to go on from and check all of it.

        models: the Hugging Face folder of each model that is trained.

        Raises:
            UserError: the checkpoint is damaged, or of another model, other data or another run.
        """
        self.options, self.topology = options, topology
        self.folders = CheckpointFolders(directory)
        self._identity = topology.broadcast(_identity(options, models) if topology.is_main else None)
        self.point = self._whole(topology.broadcast(resume.point(options, directory) if topology.is_main else None))
        self.step, self.progress = 0, {}
        if self.point:
            trainer = checkpoints.read_trainer(self.point)
            self._check(trainer, models)
            self.step, self.progress = trainer["step"], trainer.get("progress", {})
            if topology.is_main:
                self.folders.point_latest(self.point)
        self._writer: checkpoints.CheckpointWriter | None = None
        if options.checkpoint.every:
            self._writer = checkpoints.CheckpointWriter(topology, self.folders, options.checkpoint.keep)

    def restore(self, models: Mapping[str, MegatronModel]) -> None:
        """Fill the models and the random generators from the checkpoint, if there is one."""
        if self.point:
            checkpoints.load(self.point, models, self.topology)

    def after_step(self, step: int, models: Mapping[str, MegatronModel], progress: Mapping[str, Any]) -> None:
        """Put a checkpoint that was written meanwhile in its place; begin the next if it is due.

        progress: what the trainer has to remember, as JSON can hold it; the main rank's counts.
        """
        if self._writer is None:
            return
        self._writer.poll()
        if step % self.options.checkpoint.every == 0 or step == self.steps:
            self._writer.save(step, models, {"identity": self._identity, "progress": dict(progress)})

    def finish(self) -> None:
        """Wait for a checkpoint that is still being written."""
        if self._writer:
            self._writer.finish()

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return operator.attrgetter("steps")(self.options)

    def _whole(self, point: Path | None) -> Path | None:
        """``point``, or with checkpoint.skip_damaged the newest whole checkpoint up to it."""
        damaged: list[str] = []
        while point:
            problems = checkpoints.broken(point, self.topology)
            if not problems:
                return point
            damaged += problems
            older = [path for path in self.folders.all() if step_of(path) < step_of(point)]
            point = older[-1] if older else None
            if not self.options.checkpoint.skip_damaged:
                way_out = f"set checkpoint.skip_damaged=true to go on from {point}" if point else "start a new run"
                raise UserError("The checkpoint is damaged:\n  - " + "\n  - ".join(damaged) + f"\nTo go on, {way_out}.")
        if damaged:
            raise UserError("No checkpoint of this run is whole:\n  - " + "\n  - ".join(damaged))
        return None

    def _check(self, trainer: dict[str, Any], models: Mapping[str, str]) -> None:
        problems = []
        for name, folder in models.items():
            if name not in trainer["models"]:
                problems.append(f"it has no {name}, only {', '.join(trainer['models'])}.")
            else:
                problems += _differences(name, folder, self.point / name)  # type: ignore[operator]
        saved = trainer.get("identity", {})
        for name, now in self._identity.items():
            then = saved.get(name, now)
            if _content(then) != _content(now):
                problems.append(f"{name}={_shown(now)}, but the checkpoint was made with {name}={_shown(then)}.")
        if trainer["step"] > self.steps:
            problems.append(f"steps={self.steps}, but the checkpoint is of step {trainer['step']}; raise steps.")
        if problems:
            raise UserError(f"{self.point} cannot be resumed from:\n  - " + "\n  - ".join(problems))


def _identity(options: CommonOptions, models: Mapping[str, str]) -> dict[str, Any]:
    """What must be the same when the run goes on; the data and the models it began from by their content."""
    identity: dict[str, Any] = {}
    for name in FIXED:
        try:
            identity[name] = operator.attrgetter(name)(options)
        except AttributeError:  # this program has no such option
            continue
    path = Path(options.data.train)
    if path.is_file():
        with path.open("rb") as file:
            identity["data.train"] = [str(path), hashlib.file_digest(file, "sha256").hexdigest()]
    return identity | {f"the {name}'s first weights": [folder, fingerprint(folder)] for name, folder in models.items()}


def _content(value: Any) -> Any:
    """A data set or a model may have been moved."""
    return value[1] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return f"{value[0]} (sha256 {value[1][:8]})" if isinstance(value, list) else str(value)


def _differences(name: str, folder: str, saved: Path) -> list[str]:
    now, then = ({k: v for k, v in read_config(f).to_dict().items() if k not in _ASIDE} for f in (folder, saved))
    differing = [k for k in sorted(now.keys() | then.keys()) if now.get(k) != then.get(k)]
    if not differing:
        return []
    facts = ", ".join(f"{k}={now.get(k)} in the place of {then.get(k)}" for k in differing)
    return [f"its {name} is another model than {folder}, which has {facts}."]
