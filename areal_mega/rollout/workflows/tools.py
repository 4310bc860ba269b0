"""The model calls tools and reads what they say, until it answers without a call."""

from __future__ import annotations

import asyncio

from areal_mega.config.errors import UserError
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.session import Session
from areal_mega.rollout.tools.calls import ToolCall, call_format, find_calls
from areal_mega.rollout.trajectory import Trajectory


async def run(prompt: Prompt, session: Session) -> Sample:
    """One conversation with ``rollout.tools``; the verifier judges the last turn. ``rollout.max_turns`` bounds it."""
    trajectory = Trajectory(prompt, _opening(prompt, session))
    shape = call_format(session.tokenizer.chat_template)
    made = failed = 0
    finish_reason = "length"
    for turn in range(1, session.options.max_turns + 1):
        generation = await session.generate(trajectory.tokens)
        trajectory.said(generation)
        said, calls = find_calls(session.text(_without_end(generation.tokens, session), special=True), shape)
        if not calls or generation.finish_reason == "length":
            finish_reason = generation.finish_reason
            break
        if turn == session.options.max_turns:
            break
        results = await asyncio.gather(*(_result(call, session) for call in calls))
        made, failed = made + len(calls), failed + sum(not right for _, right in results)
        messages = [
            {"role": "tool", "name": call.name, "content": text, "tool_call_id": f"call{made:02}{place:03}"}
            for place, (call, (text, _)) in enumerate(zip(calls, results, strict=True))
        ]
        piece = session.chat.between(generation.tokens, messages)
        if not session.room([*trajectory.tokens, *piece]):
            break
        trajectory.seen(piece)
    sample = trajectory.sample(said, finish_reason=finish_reason)
    sample.facts = {"turns": float(turn), "tool_calls": float(made), "tool_errors": float(failed)}
    return sample


def _opening(prompt: Prompt, session: Session) -> list[int]:
    """The prompt's conversation, with the tools where the template puts them."""
    tokens = session.chat.prompt(prompt.messages, session.tools.schemas)
    if len(tokens) > session.options.max_prompt_tokens:
        raise UserError(
            f"{prompt.source or f'prompt {prompt.id}'}: with the tools the prompt has {len(tokens)} tokens, more than "
            f"rollout.max_prompt_tokens={session.options.max_prompt_tokens}; raise it or remove the line."
        )
    return tokens


def _without_end(tokens: list[int], session: Session) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] in session.resources.stop_tokens else tokens


async def _result(call: ToolCall, session: Session) -> tuple[str, bool]:
    if call.error:
        return f"error: {call.error}", False
    return await session.tools.call(call.name, call.arguments)
