"""Asynchronous client of SGLang engines: token ids in, token ids out, through aborts and lost engines."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import aiohttp
import numpy as np

from areal_mega.rollout.pool import EngineAddress, EngineLostError, EnginePool
from areal_mega.rollout.sampling import Sampling
from areal_mega.rollout.server import EngineError

# Each holds a socket, and a process may often open no more than 1024 files.
CONCURRENT_REQUESTS = 512
# A request that kills every engine it is sent to must not take all of them, one after the other, for ever.
ATTEMPTS = 5
# How long a request rests that the engine aborted before it had a token; doubled each time.
REST_SECONDS, LONGEST_REST = 0.05, 1.0
PROBE_SECONDS = 30.0
# The server closes an idle connection after 5 seconds; one that is closed while it is taken up again looks like the
# loss of the engine.
KEEP_ALIVE_SECONDS = 1.0
_POLL_SECONDS = 0.01
# What a proxy or a server that is going down answers, and one that was started in the place of the one with that key.
_GONE = (401, 502, 503, 504)


@dataclass(frozen=True)
class Generation:
    """One generated continuation, all facts from the engine.

    tokens, logprobs, versions: one entry per generated token, the end-of-sequence token included; the
    log-prob is that of the distribution sampled from, the version -1 where the engine named none.
    finish_reason: ``stop`` or ``length``; ``abort`` for a part that is to be gone on with.
    routes: ``[n - 1, layers * k]`` int16, the experts chosen for each token of prompt and continuation but the last,
    where the engine tells them (router replay).
    """

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str
    routes: np.ndarray | None = None

    def joined(self, more: Generation) -> Generation:
        """This part and the one that was generated behind it."""
        return Generation(
            self.tokens + more.tokens,
            self.logprobs + more.logprobs,
            self.versions + more.versions,
            more.finish_reason,
            more.routes if more.tokens else self.routes,  # the later one is of the whole
        )


@dataclass
class RequestCounts:
    """generated: tokens. resumed: parts that were aborted and gone on with. resent: requests an engine was lost with;
    what it had generated of them is lost too.
    """

    requests: int = 0
    generated: int = 0
    resumed: int = 0
    resent: int = 0


class CutError(Exception):
    """The response was ended early because its group is not wanted any more."""


class GenerationClient:
    """Sends requests to a pool of engines; use it as an async context manager in the pool's event loop.

    request_timeout: seconds one request may take. decode: token ids as text, to know stop strings by. cuttable: `cut`
    will be called; SGLang's own ``n`` is not used then, since what comes of it has no names to abort it by. routes: ask
    for the experts that were chosen for each token.
    """

    def __init__(
        self,
        pool: EnginePool,
        request_timeout: float,
        decode: Callable[[list[int]], str],
        *,
        cuttable: bool = False,
        routes: bool = False,
        concurrency: int = CONCURRENT_REQUESTS,
    ) -> None:
        self.pool, self.counts = pool, RequestCounts()
        self._timeout, self._decode, self._cuttable = request_timeout, decode, cuttable
        self._asked = {"return_logprob": True, **({"return_routed_experts": True} if routes else {})}
        self._slots = asyncio.Semaphore(concurrency)
        self._open: dict[Hashable, dict[str, EngineAddress]] = {}
        self._generated: dict[Hashable, int] = {}
        self._cut: set[Hashable] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=request_timeout),
        )
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> GenerationClient:
        self._watch = asyncio.create_task(self.pool.watch(self._probe))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch:
            self._watch.cancel()
        await self.pool.close()
        await self._session.close()

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling | Sequence[Sampling], key: Hashable | None = None
    ) -> list[Generation]:
        """Continue a prompt, once for each `Sampling`; equal ones share the work on the prompt.

        A request that was aborted (at a weight update, say) is sent again with what it has and goes on under the new
        weights; one whose engine was lost goes to another, or waits for it to come back. key: see `EnginePool.lease`.

        Raises:
            EngineError: an engine refused, was too slow or produced NaN, or none is there.
            CutError: `cut` was called with the key.
        """
        each = [sampling] if isinstance(sampling, Sampling) else list(sampling)
        parts = await self._request(list(prompt), each, key)
        return list(
            await asyncio.gather(*(self._finish(prompt, one, s, key) for one, s in zip(parts, each, strict=True)))
        )

    async def cut(self, key: Hashable) -> int:
        """End the responses of a key early; their callers get `CutError`. Returns all tokens the key ever generated."""
        self._cut.add(key)
        orders = [self._abort(address, rid) for rid, address in self._open.get(key, {}).items()]
        await asyncio.gather(*orders, return_exceptions=True)
        await self._answered(key)
        return self._generated.get(key, 0)

    def forget(self, key: Hashable) -> None:
        """Nothing more comes with this key."""
        self._cut.discard(key)
        self._generated.pop(key, None)
        self.pool.forget(key)

    async def _answered(self, key: Hashable) -> None:
        """Return when all requests of a key have been answered: what they generated is known then."""
        while key in self._open:
            await asyncio.sleep(_POLL_SECONDS)

    async def _finish(
        self, prompt: Sequence[int], part: Generation, sampling: Sampling, key: Hashable | None
    ) -> Generation:
        """The whole response that begins with the part."""
        rest = REST_SECONDS
        while part.finish_reason == "abort":
            if ended := sampling.ended(part.tokens, self._decode):
                return replace(part, finish_reason=ended)
            if key in self._cut:
                await self._answered(key)
                raise CutError
            self.counts.resumed += 1
            more = await self._request([*prompt, *part.tokens], [sampling.after(len(part.tokens))], key)
            if not more[0].tokens:
                await asyncio.sleep(rest)
                rest = min(2 * rest, LONGEST_REST)
            part = part.joined(more[0])
        return part

    async def _request(self, tokens: list[int], each: list[Sampling], key: Hashable | None) -> list[Generation]:
        """One request, sent again while engines are lost: nothing was answered, and generating twice is harmless."""
        for attempt in range(1, ATTEMPTS + 1):
            if key in self._cut:
                raise CutError
            try:
                async with self._slots, self.pool.lease(key, len(each)) as lease:
                    parts = await self._post(lease.address, tokens, each, key)
                    lease.tokens = sum(len(part.tokens) for part in parts)
            except EngineLostError as error:
                self.counts.resent += 1
                if attempt == ATTEMPTS:
                    raise EngineError(f"A request lost its engine {ATTEMPTS} times: {error}") from error
                continue
            self.counts.requests += 1
            self.counts.generated += lease.tokens
            self._generated[key] = self._generated.get(key, 0) + lease.tokens
            return parts
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _post(
        self, address: EngineAddress, tokens: list[int], each: list[Sampling], key: Hashable | None
    ) -> list[Generation]:
        # A refusal would be the same again, and after a time-out the engine may still be busy with the request.
        try:
            if len(each) == 1 or not self._cuttable:
                answer = await self._generate(address, self._asked | _together(tokens, each), key)
            else:
                await self._generate(address, _prefix(tokens), key)  # the others find it in the cache
                answer = await self._generate(address, self._asked | _one_by_one(tokens, each), key)
        except TimeoutError as error:
            raise EngineError(
                f"SGLang did not finish a request within rollout.request_timeout={self._timeout:g} seconds; "
                "set it higher or rollout.max_new_tokens lower."
            ) from error
        return [parse_generation(one) for one in (answer if isinstance(answer, list) else [answer])]

    async def _generate(self, address: EngineAddress, body: dict[str, Any], key: Hashable | None) -> Any:
        rids = [body["rid"]] if isinstance(body["rid"], str) else body["rid"]
        names = self._open.setdefault(key, {})
        names.update(dict.fromkeys(rids, address))
        try:
            return await self._call(address.url + "/generate", address.api_key, body)
        finally:
            for rid in rids:
                del names[rid]
            if not names:
                self._open.pop(key, None)

    async def _abort(self, address: EngineAddress, rid: str) -> None:
        await self._call(address.url + "/abort_request", address.admin_key, {"rid": rid})

    async def _probe(self, address: EngineAddress) -> None:
        """Raise `EngineLostError` when nobody listens there; an engine that is merely slow stays."""
        try:
            async with asyncio.timeout(PROBE_SECONDS), self._session.get(f"{address.url}/health") as response:
                await response.read()
        except aiohttp.ClientError as error:
            raise EngineLostError(f"SGLang at {address.url} was not reached: {error}") from error
        except TimeoutError as error:
            raise EngineLostError(f"SGLang at {address.url} did not answer in {PROBE_SECONDS:g} seconds") from error

    async def _call(self, url: str, key: str, body: dict[str, Any]) -> Any:
        try:
            async with self._session.post(url, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
                text = await response.text()
        except aiohttp.ClientError as error:
            raise EngineLostError(f"SGLang was not reached: {error}") from error
        if response.status in _GONE:
            raise EngineLostError(f"SGLang answered HTTP {response.status}: {text}")
        if response.status != 200:
            raise EngineError(f"SGLang refused a request (HTTP {response.status}): {text}")
        return json.loads(text) if text else None


def _together(tokens: list[int], each: list[Sampling]) -> dict[str, Any]:
    if any(sampling != each[0] for sampling in each):
        return _one_by_one(tokens, each)
    parameters = each[0].body() | ({"n": len(each)} if len(each) > 1 else {})
    return {"rid": uuid.uuid4().hex, "input_ids": tokens, "sampling_params": parameters}


def _one_by_one(tokens: list[int], each: list[Sampling]) -> dict[str, Any]:
    return {
        "rid": [uuid.uuid4().hex for _ in each],
        "input_ids": [tokens] * len(each),
        "sampling_params": [sampling.body() for sampling in each],
    }


def _prefix(tokens: list[int]) -> dict[str, Any]:
    return {"rid": uuid.uuid4().hex, "input_ids": tokens, "sampling_params": {"max_new_tokens": 0}}


def parse_generation(answer: dict[str, Any]) -> Generation:
    """One entry of a ``/generate`` answer.

    Raises:
        EngineError: the request failed, the model produced NaN, or the log-probs are of other tokens.
    """
    meta = answer["meta_info"]
    reason = meta["finish_reason"]
    if reason["type"] not in ("stop", "length", "abort") or reason.get("matched") == "NaN happened":
        raise EngineError(f"SGLang ended a request with {reason}; only stop, length and abort are known.")
    entries = meta.get("output_token_logprobs") or []
    tokens = [token for _, token, _ in entries]
    if tokens != answer["output_ids"]:
        raise EngineError(f"SGLang answered {answer['output_ids']} with the log-probs of {tokens}.")
    versions = [-1] * len(entries)
    for span in meta.get("weight_versions") or []:
        start, end = span["start"], min(span["end"], len(entries))
        versions[start:end] = [int(span["version"])] * (end - start)
    return Generation(
        tokens=tokens,
        logprobs=[logprob for logprob, _, _ in entries],
        versions=versions,
        finish_reason=reason["type"],
        routes=_routes(meta.get("routed_experts"), meta),
    )


def _routes(encoded: str | None, meta: dict[str, Any]) -> np.ndarray | None:
    if encoded is None:
        return None
    numbers = np.frombuffer(base64.b64decode(encoded), dtype=np.int32)
    return numbers.reshape(meta["prompt_tokens"] + meta["completion_tokens"] - 1, -1).astype(np.int16)
