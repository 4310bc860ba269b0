"""One question, one answer."""

from __future__ import annotations

from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.session import Session
from areal_mega.rollout.trajectory import Trajectory
from areal_mega.rollout.workflows import Workflow


async def run_group(prompt: Prompt, session: Session, count: int) -> list[Sample]:
    """All answers to a prompt; the work on the prompt is done once."""
    samples = []
    for generation in await session.generate_many(prompt.tokens, count):
        trajectory = Trajectory(prompt)
        trajectory.said(generation)
        samples.append(trajectory.sample(session.text(generation.tokens)))
    return samples


async def run(prompt: Prompt, session: Session) -> Sample:
    """One answer."""
    return (await run_group(prompt, session, 1))[0]


single_turn = Workflow(run, run_group)
