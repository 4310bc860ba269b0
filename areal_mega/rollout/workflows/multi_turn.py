"""A conversation with an environment: turn, answer, turn, until the environment, the turns or the room end."""

from __future__ import annotations

from functools import cache

from areal_mega.config.errors import UserError
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.environment import MakeEnvironment, Step
from areal_mega.rollout.session import Session
from areal_mega.rollout.trajectory import Trajectory
from areal_mega.runtime.imports import imported


async def run(prompt: Prompt, session: Session) -> Sample:
    """One conversation; ``rollout.max_turns`` bounds it. One that ran out of turns or room was truncated."""
    environment = _environment(session.options.environment)(prompt)
    trajectory = Trajectory(prompt)
    for turn in range(1, session.options.max_turns + 1):
        generation = await session.generate(trajectory.tokens)
        text = session.text(generation.tokens)
        step = await environment.step(text)
        trajectory.said(generation, step.reward)
        piece = [] if step.done else _piece(session, generation.tokens, step)
        room = session.room([*trajectory.tokens, *piece])
        if step.done or turn == session.options.max_turns or not room or generation.finish_reason == "length":
            break
        trajectory.seen(piece)
    sample = trajectory.sample(
        text,
        finish_reason=generation.finish_reason if step.done else "length",
        outcome=step.outcome,
    )
    sample.facts = {"turns": float(turn)}
    return sample


def _piece(session: Session, generated: list[int], step: Step) -> list[int]:
    if isinstance(step.messages, str):
        return session.tokenizer(step.messages, add_special_tokens=False)["input_ids"]
    return session.chat.between(generated, step.messages)


@cache
def _environment(name: str | None) -> MakeEnvironment:
    if name is None:
        raise UserError("rollout.workflow=multi_turn talks with an environment; set rollout.environment.")
    return imported(name, f"rollout.environment={name}")
