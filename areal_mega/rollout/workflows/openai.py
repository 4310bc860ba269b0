"""An agent that talks to the model through OpenAI's API, trained on everything the model said to it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.session import Session
from areal_mega.runtime.imports import imported


async def run(prompt: Prompt, session: Session) -> list[Sample]:
    """One run of ``rollout.agent``, a function of the prompt and an `Endpoint`.

    The agent returns how well it went, from 0 to 1, or None to have its last answers judged. A plain function runs in
    a thread: it may block.

    Raises:
        UserError: there is no agent, or it asked the model nothing.
    """
    agent = _agent(session.options.agent)
    async with session.resources.proxy.endpoint(session, prompt) as endpoint:
        if inspect.iscoroutinefunction(agent):
            outcome = await agent(prompt, endpoint)
        else:
            outcome = await asyncio.to_thread(agent, prompt, endpoint)
        samples = endpoint.samples(None if outcome is None else float(outcome))
    if not samples:
        raise UserError(f"rollout.agent={session.options.agent} asked the model nothing for prompt {prompt.id}.")
    return samples


@cache
def _agent(name: str | None) -> Callable[..., Any]:
    if name is None:
        raise UserError("rollout.workflow=openai runs an agent; set rollout.agent to package.module:function.")
    return imported(name, f"rollout.agent={name}")
