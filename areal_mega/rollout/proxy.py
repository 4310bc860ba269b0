"""An OpenAI-compatible server on loopback, in front of the engines: agents talk to it and are trained on what it says.

Each run of an agent has its own address and key, by which its requests are known. Served are ``/v1/chat/completions``
(also streamed, in one piece) and ``/v1/models``. What would bias training is refused: another temperature than the
one that is trained, top_p, several choices.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from areal_mega.config.errors import UserError
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.chat import Message
from areal_mega.rollout.conversations import Conversations
from areal_mega.rollout.tools.calls import call_format, find_calls

if TYPE_CHECKING:
    from areal_mega.rollout.session import Session

MODEL = "policy"
_HOST = "127.0.0.1"
_BODY_BYTES = 64 << 20


class Endpoint:
    """What one run of an agent gets, and what came of it."""

    def __init__(self, url: str, session: Session, prompt: Prompt) -> None:
        self.base_url, self.api_key, self.model = url, secrets.token_urlsafe(16), MODEL
        self.session, self.prompt = session, prompt
        self.conversations = Conversations(session.chat)
        self.requests = 0

    def reward_turn(self, reward: float) -> None:
        """What the answer given last earns by itself."""
        if self.conversations.last is None:
            raise ValueError("there is no answer yet")
        self.conversations.last.reward = reward

    def samples(self, outcome: float | None = None) -> list[Sample]:
        """Everything the model said in this run, as samples; none where the agent asked nothing.

        outcome: how well it went, from 0 to 1; None leaves it to the verifier, which judges each last answer.
        """
        samples = self.conversations.samples(self.prompt, outcome)
        for sample in samples:
            sample.facts = {"requests": float(self.requests), "conversations": float(len(samples))}
        return samples


class ChatProxy:
    """The server; it starts when the first endpoint is opened. `close` ends it."""

    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._runner: web.AppRunner | None = None
        self._starting = asyncio.Lock()
        self._port = 0

    @asynccontextmanager
    async def endpoint(self, session: Session, prompt: Prompt) -> AsyncIterator[Endpoint]:
        """An address for one run of an agent; afterwards nobody answers there."""
        async with self._starting:
            await self._start()
        name = secrets.token_urlsafe(8)
        endpoint = Endpoint(f"http://{_HOST}:{self._port}/{name}/v1", session, prompt)
        self._endpoints[name] = endpoint
        try:
            yield endpoint
        finally:
            del self._endpoints[name]

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _start(self) -> None:
        if self._runner:
            return
        application = web.Application(client_max_size=_BODY_BYTES)
        application.router.add_post("/{run}/v1/chat/completions", self._completions)
        application.router.add_get("/{run}/v1/models", self._models)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        _reach_loopback_directly()
        site = web.TCPSite(self._runner, _HOST, 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    def _endpoint(self, request: web.Request) -> Endpoint | None:
        endpoint = self._endpoints.get(request.match_info["run"])
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return endpoint if endpoint and secrets.compare_digest(key, endpoint.api_key) else None

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if self._endpoint(request) is None:
            return _refusal("unknown key", 401)
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "areal"}]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        endpoint = self._endpoint(request)
        if endpoint is None:
            return _refusal("unknown key", 401)
        try:
            body = await request.json()
            problem = _problem(body, endpoint.session.temperature)
        except (ValueError, TypeError, AttributeError):
            return _refusal("the body is no JSON object", 400)
        if problem:
            return _refusal(problem, 400)
        try:
            answer = await _complete(endpoint, body)
        except UserError as error:
            return _refusal(str(error), 400)
        if not body.get("stream"):
            return web.json_response(answer)
        return await _stream(request, answer, bool((body.get("stream_options") or {}).get("include_usage")))


def _reach_loopback_directly() -> None:
    """An agent's client must not send what is for this machine to a proxy of the environment."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if _HOST not in hosts:
            os.environ[name] = ",".join([*hosts, _HOST])


def _problem(body: dict[str, Any], temperature: float) -> str:
    """Why a request cannot be answered; empty when it can."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        return "messages must be a list of objects with role and content"
    if body.get("temperature") not in (None, temperature):
        return (
            f"temperature={body['temperature']}, but what is trained is sampled with {temperature:g}; leave it out, "
            "or set rollout.temperature"
        )
    for name, only in (("top_p", 1), ("n", 1), ("frequency_penalty", 0), ("presence_penalty", 0)):
        if body.get(name) not in (None, only):
            return f"{name}={body[name]}: only {only} can be trained on"
    for name in ("stop", "logit_bias", "response_format", "logprobs"):
        if body.get(name):
            return f"{name} is not offered here"
    return ""


async def _complete(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    session, conversations = endpoint.session, endpoint.conversations
    messages, tools = body["messages"], body.get("tools") or []
    before, new, tokens = conversations.find(messages, tools)
    if not session.room(tokens):
        raise UserError(f"the conversation has {len(tokens)} tokens, and no room is left of {session.max_tokens}")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    generation = await session.generate(tokens, max_new_tokens=limit)
    endpoint.requests += 1
    ended = generation.tokens[-1:] and generation.tokens[-1] in session.resources.stop_tokens
    text = session.text(generation.tokens[:-1] if ended else generation.tokens, special=bool(tools))
    message, reason = _message(text, bool(tools), session), generation.finish_reason
    if message.get("tool_calls") and reason == "stop":
        reason = "tool_calls"
    conversations.add(before, new, generation, message["content"] or "", [*messages, message], tools)
    usage = {"prompt_tokens": len(tokens), "completion_tokens": len(generation.tokens)}
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": usage | {"total_tokens": sum(usage.values())},
    }


def _message(text: str, tools: bool, session: Session) -> Message:
    """What the model said, with its tool calls where tools were offered; a call that is none stays text."""
    if not tools:
        return {"role": "assistant", "content": text}
    said, calls = find_calls(text, call_format(session.tokenizer.chat_template))
    if not calls or any(call.error for call in calls):
        return {"role": "assistant", "content": text}
    made = [
        {
            "id": f"call_{secrets.token_hex(8)}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for call in calls
    ]
    return {"role": "assistant", "content": said or None, "tool_calls": made}


async def _stream(request: web.Request, answer: dict[str, Any], usage: bool) -> web.StreamResponse:
    """The whole answer as one event: an agent that reads a stream reads it at once."""
    choice = answer["choices"][0]
    calls = [{"index": i, **call} for i, call in enumerate(choice["message"].get("tool_calls", []))]
    delta = {k: v for k, v in choice["message"].items() if k != "tool_calls"} | ({"tool_calls": calls} if calls else {})
    head = {k: answer[k] for k in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    chunks = [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
    ]
    if usage:
        chunks.append(head | {"choices": [], "usage": answer["usage"]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for chunk in [*map(json.dumps, chunks), "[DONE]"]:
        await response.write(f"data: {chunk}\n\n".encode())
    return response


def _refusal(why: str, status: int) -> web.Response:
    error = {"message": why, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=status)
