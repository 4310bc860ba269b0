"""Asynchronous client of one SGLang server: token ids in, token ids out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from areal_mega.rollout.server import EngineError, SGLangServer

ATTEMPTS = 3
RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Generation:
    """One generated continuation, all facts from the engine.

    tokens, logprobs, versions: one entry per generated token, the end-of-sequence token included; the
    log-prob is that of the distribution sampled from, the version -1 where the engine named none.
    finish_reason: ``stop`` or ``length``.
    """

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str


class GenerationClient:
    """At most `concurrency` prompts are under way at the same time; use it as an async context manager."""

    def __init__(self, server: SGLangServer, concurrency: int) -> None:
        self._server = server
        self._slots = asyncio.Semaphore(concurrency)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {server.api_key}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=server.options.request_timeout),
        )

    async def __aenter__(self) -> GenerationClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def generate(
        self, prompt: Sequence[int], sampling: dict[str, Any] | list[dict[str, Any]]
    ) -> list[Generation]:
        """Continue a prompt with SGLang's sampling parameters: ``n`` times, or once for each entry of a list.

        Raises:
            EngineError: the engine refused, died, ended a request before its time or produced NaN.
        """
        tokens = list(prompt)
        input_ids = [tokens] * len(sampling) if isinstance(sampling, list) else tokens
        body = {"input_ids": input_ids, "sampling_params": sampling, "return_logprob": True}
        async with self._slots:
            answer = await self._post_generate(body)
        return [parse_generation(one) for one in (answer if isinstance(answer, list) else [answer])]

    async def _post_generate(self, body: dict[str, Any]) -> Any:
        """POST, again when the connection was lost: nothing was answered, and generating twice is harmless.

        A refusal would be the same again, and after a time-out the engine may still be busy with the request.
        """
        for attempt in range(1, ATTEMPTS + 1):
            self._server.check()
            try:
                async with self._session.post(f"{self._server.url}/generate", json=body) as response:
                    text = await response.text()
                    if response.status != 200:
                        raise EngineError(f"SGLang refused a request (HTTP {response.status}): {text}")
                    return json.loads(text)
            except TimeoutError as error:
                limit = self._server.options.request_timeout
                raise EngineError(
                    f"SGLang did not finish a request within rollout.request_timeout={limit:g} seconds; "
                    "set it higher or rollout.max_new_tokens lower."
                ) from error
            except aiohttp.ClientError as error:
                if attempt == ATTEMPTS:
                    report = self._server.log_report()
                    raise EngineError(f"SGLang was not reached {ATTEMPTS} times: {error}\n{report}") from error
                await asyncio.sleep(RETRY_SECONDS)
        raise AssertionError("unreachable: the last attempt returns or raises")


def parse_generation(answer: dict[str, Any]) -> Generation:
    """One entry of a ``/generate`` answer.

    Raises:
        EngineError: the request was aborted, the model produced NaN, or the log-probs are of other tokens.
    """
    meta = answer["meta_info"]
    reason = meta["finish_reason"]
    if reason["type"] not in ("stop", "length") or reason.get("matched") == "NaN happened":
        raise EngineError(f"SGLang ended a request with {reason}; only stop and length are answers.")
    entries = meta["output_token_logprobs"]
    tokens = [token for _, token, _ in entries]
    if tokens != answer["output_ids"]:
        raise EngineError(f"SGLang answered {answer['output_ids']} with the log-probs of {tokens}.")
    versions = [-1] * len(entries)
    for span in meta["weight_versions"]:
        start, end = span["start"], min(span["end"], len(entries))
        versions[start:end] = [int(span["version"])] * (end - start)
    return Generation(
        tokens=tokens,
        logprobs=[logprob for logprob, _, _ in entries],
        versions=versions,
        finish_reason=reason["type"],
    )
