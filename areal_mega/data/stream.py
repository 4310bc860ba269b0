"""The order of a run's training prompts. Which prompt stands at a place depends on nothing but the place, the options
and the data: so a run goes on exactly, in whatever order its groups were finished.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from areal_mega.config.errors import UserError
from areal_mega.config.options import CurriculumStageOptions
from areal_mega.data.sample import Prompt


@dataclass
class _Stage:
    """start: the first place of the stage. order: of the pass it is in."""

    start: int
    prompts: list[Prompt]
    max_new_tokens: int
    seed: str
    epoch: int = -1
    order: list[int] = field(default_factory=list)

    def at(self, place: int, shuffle: bool) -> Prompt:
        epoch, index = divmod(place - self.start, len(self.prompts))
        if not shuffle:
            return self.prompts[index]
        if epoch != self.epoch:
            self.epoch, self.order = epoch, list(range(len(self.prompts)))
            random.Random(f"{self.seed}-{epoch}").shuffle(self.order)
        return self.prompts[self.order[index]]


class PromptStream:
    """All passes over the prompts, each shuffled by its own seed, stage after stage.

    Raises:
        UserError: a stage has no prompts, or prompts have no difficulty to choose by.
    """

    def __init__(
        self, prompts: Sequence[Prompt], shuffle: bool, seed: int, stages: Sequence[CurriculumStageOptions] = ()
    ) -> None:
        self._shuffle = shuffle
        self._stages: list[_Stage] = []
        start = 0
        for index, stage in enumerate(stages or [CurriculumStageOptions()]):
            own = f"{seed}-{index}" if index else str(seed)
            chosen = [p for p in prompts if _fits(p, stage, index)]
            if not chosen:
                raise UserError(f"data.curriculum[{index}]: no prompt has such a difficulty; change its bounds.")
            self._stages.append(_Stage(start, chosen, stage.max_new_tokens or 0, own))
            start += stage.prompts or 0

    def at(self, place: int) -> tuple[Prompt, int]:
        """The prompt of a place, counted from 0 over all passes, and its longest response; 0: the options'."""
        stage = next(stage for stage in reversed(self._stages) if stage.start <= place)
        return stage.at(place, self._shuffle), stage.max_new_tokens


def _fits(prompt: Prompt, stage: CurriculumStageOptions, index: int) -> bool:
    if stage.min_difficulty is None and stage.max_difficulty is None:
        return True
    difficulty = prompt.metadata.get("difficulty")
    if not isinstance(difficulty, (int, float)):
        raise UserError(
            f"data.curriculum[{index}] needs a number metadata.difficulty; {prompt.source or prompt.id} has none."
        )
    low = -float("inf") if stage.min_difficulty is None else stage.min_difficulty
    high = float("inf") if stage.max_difficulty is None else stage.max_difficulty
    return low <= difficulty <= high
