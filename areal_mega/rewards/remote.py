"""Rewards from an HTTP server: a reward model, a judge, a sandbox farm.

The server gets a POST for each response, with JSON: ``prompt`` (text), ``messages`` (the same as a conversation),
``response``, ``answers`` (references), ``task``, ``metadata``. It answers with JSON: ``{"score": 0.7, "parts":
{"style": 0.2}}``, parts being optional.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp

from areal_mega.config.options import HttpOptions
from areal_mega.data.sample import Prompt
from areal_mega.rewards.score import Score

_FIRST_PAUSE = 0.5


def http_scores(pairs: Sequence[tuple[str, Prompt]], options: HttpOptions) -> list[Score]:
    """The server's scores of the responses, in their order; one it does not give has failed."""
    return asyncio.run(_scores(pairs, options))


async def _scores(pairs: Sequence[tuple[str, Prompt]], options: HttpOptions) -> list[Score]:
    slots = asyncio.Semaphore(options.concurrency)
    timeout = aiohttp.ClientTimeout(total=options.timeout)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(response: str, prompt: Prompt) -> Score:
            async with slots:
                return await _ask(session, response, prompt, options)

        return list(await asyncio.gather(*(one(response, prompt) for response, prompt in pairs)))


async def _ask(session: aiohttp.ClientSession, response: str, prompt: Prompt, options: HttpOptions) -> Score:
    """One score. Asked again, with longer and longer pauses, while the server is not there, busy or broken; what it
    refuses (HTTP 4xx) it would refuse again."""
    body = {
        "prompt": prompt.text,
        "messages": prompt.messages,
        "response": response,
        "answers": list(prompt.references),
        "task": prompt.task,
        "metadata": prompt.metadata,
    }
    why = ""
    for attempt in range(options.attempts):
        if attempt:
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            async with session.post(str(options.url), json=body) as answer:
                if answer.status == 200:
                    return _score(await answer.json(content_type=None))
                why = f"HTTP {answer.status}: {(await answer.text())[:200]}"
                if answer.status < 500 and answer.status not in (408, 429):
                    break
        except TimeoutError:
            why = f"no answer within {options.timeout:g} seconds"
        except (aiohttp.ClientError, ValueError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
    return Score(0.0, note=why, failed=True)


def _score(answer: Any) -> Score:
    """Raises ValueError or TypeError where it is no score."""
    if not isinstance(answer, dict) or "score" not in answer:
        raise ValueError(f"expected an object with score, found {str(answer)[:200]}")
    parts = {str(name): float(value) for name, value in (answer.get("parts") or {}).items()}
    return Score(Score.of(answer["score"]).value, parts)
