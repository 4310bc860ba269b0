"""How far generation may run ahead of training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class StalenessManager:
    """Counts groups of samples and says how many more may be started.

    capacity = min(max_running - running, (eta + version + 1) * batch - (accepted + running))

    (AReaL, arXiv:2505.24298, section 5.1.) ``version`` batches have been trained on, ``accepted`` groups have been
    finished for training since the run began, ``running`` are under way. So whatever is started at a version fits into
    the batches up to the one that is trained ``eta`` versions later. The formula alone does not see to it that it gets
    there: a group that takes long could be overtaken again and again. A batch must take the oldest, and wait where
    what it leaves would come too late (`in_time`). Then no sample is trained on whose first token is more than eta
    versions old, and no group is thrown away for its age.

    batch: groups of a training step. eta: 0 is synchronous. spare: groups beyond, so that a batch need not wait for
    its slowest (over-sampling); what is not taken then is dropped. steps: batches of the whole run, beyond which
    nothing is started; None: no end.

    Raises ValueError for numbers that cannot be.
    """

    batch: int
    eta: int
    max_running: int
    version: int = 0
    spare: int = 0
    running: int = 0
    accepted: int = -1
    steps: int | None = None
    taken: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1 or self.eta < 0 or self.max_running < 1 or self.version < 0 or self.spare < 0:
            raise ValueError(f"these numbers cannot be: {self}")
        if self.accepted < 0:  # a run that is resumed has trained on this many
            self.accepted = self.version * self.batch

    @property
    def capacity(self) -> int:
        """Groups that may be started now."""
        batches = self.eta + self.version + 1
        if self.steps is not None:
            batches = min(batches, self.steps)
        # Spare groups are for a batch that is still to be filled.
        ahead = batches * self.batch + (self.spare if batches > self.version and not self.taken else 0)
        return max(0, min(self.max_running - self.running, ahead - (self.accepted + self.running)))

    def in_time(self, left: Iterable[int]) -> bool:
        """Whether all that the next batch leaves can still be trained on within eta versions.

        left: the version each of them was started at, whether it runs or is finished. The oldest go first.
        """
        return all(self.version + 1 + i // self.batch <= v + self.eta for i, v in enumerate(sorted(left)))

    def start(self) -> None:
        """A group is started; `capacity` must allow it."""
        if not self.capacity:
            raise ValueError(f"there is no capacity: {self}")
        self.running += 1

    def accept(self) -> None:
        """A running group is finished, for training."""
        self.running -= 1
        self.accepted += 1

    def reject(self) -> None:
        """A running group ended and is not for training."""
        self.running -= 1

    def drop(self, groups: int) -> None:
        """Accepted groups are not trained on after all."""
        self.accepted -= groups

    def take(self) -> None:
        """The batch of this version is complete, and trained on now."""
        self.taken = True

    def publish(self, version: int) -> None:
        """The engines have new weights; versions only go up."""
        if version < self.version:
            raise ValueError(f"version {version} after {self.version}")
        self.version, self.taken = version, False
