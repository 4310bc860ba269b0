"""What an OpenAI client's requests have to do with each other: a tree of conversations, kept as token ids.

A client sends the whole conversation with every request. Where it begins with one that was answered before, its ids
are those that were generated then, and only what is new goes through the template. So a conversation that was gone on
with is one sample, and one that was gone on with in two ways is two, which share their beginning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.chat import ChatFormat, Message
from areal_mega.rollout.client import Generation
from areal_mega.rollout.trajectory import Trajectory


class Answered:
    """A conversation up to an answer of the model. tokens: all its ids, the answer's included."""

    def __init__(self, before: Answered | None, seen: list[int], generation: Generation, text: str) -> None:
        self.before, self.seen, self.generation, self.text = before, seen, generation, text
        self.reward = 0.0
        self.gone_on = False
        self.tokens: list[int] = [*(before.tokens if before else []), *seen, *generation.tokens]


class Conversations:
    """All requests of one run of an agent."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._answered: dict[str, Answered] = {}
        self._order: list[Answered] = []

    def find(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> tuple[Answered | None, list[int], list[int]]:
        """The longest conversation answered before that these messages go on with, what is new, and all ids."""
        for length in range(len(messages) - 1, 0, -1):
            before = self._answered.get(_name(messages[:length], tools))
            if before and not any(message["role"] == "assistant" for message in messages[length:]):
                new = self._chat.between(before.generation.tokens, list(messages[length:]))
                return before, new, [*before.tokens, *new]
        new = self._chat.prompt([_templated(message) for message in messages], tools)
        return None, new, new

    def add(
        self,
        before: Answered | None,
        new: list[int],
        generation: Generation,
        text: str,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
    ) -> Answered:
        """The model answered. messages: the conversation with the answer as the client was given it."""
        answered = Answered(before, new, generation, text)
        if before:
            before.gone_on = True
        self._answered[_name(messages, tools)] = answered
        self._order.append(answered)
        return answered

    @property
    def last(self) -> Answered | None:
        return self._order[-1] if self._order else None

    def samples(self, prompt: Prompt, outcome: float | None) -> list[Sample]:
        """A sample for each conversation that was not gone on with; what was generated counts in one of them only."""
        used: set[int] = set()
        samples = []
        for leaf in self._order:
            if leaf.gone_on or not leaf.generation.tokens:
                continue
            path = _path(leaf)
            trajectory = Trajectory(prompt, [])
            for answered in path:
                trajectory.seen(answered.seen)
                if id(answered) in used:
                    trajectory.seen(answered.generation.tokens)
                else:
                    trajectory.said(answered.generation, answered.reward)
                    used.add(id(answered))
            samples.append(trajectory.sample(leaf.text, outcome=outcome))
        return samples


def _path(leaf: Answered) -> list[Answered]:
    path = [leaf]
    while path[-1].before:
        path.append(path[-1].before)
    return path[::-1]


def _name(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
    return json.dumps([[_plain(message) for message in messages], list(tools)], sort_keys=True)


def _templated(message: Message) -> Message:
    """OpenAI's API writes the arguments of a call as text, chat templates want the object."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"] or "{}")}}
        for c in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _plain(message: Message) -> Message:
    """A message without what clients add when they send an answer back: empty fields and ones of their own."""
    plain = {name: message[name] for name in ("role", "content", "name", "tool_call_id") if message.get(name)}
    if message.get("tool_calls"):
        plain["tool_calls"] = [
            [c.get("id"), c["function"]["name"], c["function"]["arguments"]] for c in message["tool_calls"]
        ]
    if isinstance(plain.get("content"), list):
        plain["content"] = "".join(part.get("text", "") for part in plain["content"])
    return plain
