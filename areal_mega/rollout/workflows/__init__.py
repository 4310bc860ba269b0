"""Workflows: how a prompt becomes samples. To add one, write its function and its line here; a user's own needs no
line: its name is ``package.module:function``.

A workflow is ``async def run(prompt, session)`` and returns a `Sample`, or a list of them where one run makes several
things to learn from. See docs/rollout.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.session import Session
from areal_mega.runtime.imports import imported

Run = Callable[[Prompt, Session], Awaitable[Sample | list[Sample]]]
RunGroup = Callable[[Prompt, Session, int], Awaitable[list[Sample]]]

_HERE = "areal_mega.rollout.workflows"
WORKFLOWS = {
    "single_turn": f"{_HERE}.single_turn:single_turn",
    "multi_turn": f"{_HERE}.multi_turn:run",
    "tools": f"{_HERE}.tools:run",
    "openai": f"{_HERE}.openai:run",
}


@dataclass(frozen=True)
class Workflow:
    """run_group: all samples of a prompt at once, where that is less work than one after the other."""

    run: Run
    run_group: RunGroup | None = None

    async def group(self, prompt: Prompt, count: int, session: Callable[[int], Session]) -> list[Sample]:
        """All samples of ``count`` runs, in their order.

        session: makes the session of a run; they share their key. The first that fails ends the others.
        """
        if self.run_group:
            return await self.run_group(prompt, session(0), count)
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(_as_task(self.run(prompt, session(index)))) for index in range(count)]
        samples: list[Sample] = []
        for run in runs:
            found = run.result()
            samples += found if isinstance(found, list) else [found]
        return samples


def load_workflow(name: str) -> Workflow:
    """The workflow of ``rollout.workflow``.

    Raises:
        UserError: there is none of that name, or it cannot be imported.
    """
    found = imported(WORKFLOWS.get(name, name), f"rollout.workflow={name}")
    return found if isinstance(found, Workflow) else Workflow(found)


async def _as_task(run: Awaitable[Sample | list[Sample]]) -> Sample | list[Sample]:
    return await run
