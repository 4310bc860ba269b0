"""A reward model behind HTTP, in the protocol of `areal_mega.rewards.remote`.

transformers runs it, so that any sequence classifier of one label will do, not only what tools/train_reward.py saved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from aiohttp import web
from transformers import AutoConfig, AutoModelForSequenceClassification

from areal_mega.config.dtypes import DTYPES
from areal_mega.config.errors import UserError
from areal_mega.config.options import ServeRewardOptions
from areal_mega.data.tokenizer import load_tokenizer

LARGEST_BODY = 64 << 20


class RewardModel:
    """Tokens of prompt and response in, the logit after the last of them out."""

    def __init__(self, options: ServeRewardOptions, device: str) -> None:
        """Load it.

        Raises:
            UserError: the folder is no sequence classifier of one label.
        """
        path = options.model.path
        self.tokenizer = load_tokenizer(path)
        config = AutoConfig.from_pretrained(path)
        architectures = config.architectures or ["nothing"]
        if not architectures[0].endswith("ForSequenceClassification") or config.num_labels != 1:
            raise UserError(
                f"model.path={path}: a {architectures[0]} of {config.num_labels} labels; a reward model is a sequence "
                "classifier of one label, as tools/train_reward.py saves it."
            )
        torch.set_num_threads(options.runtime.threads)
        self.device = device
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=DTYPES[options.model.dtype])
        self._model = model.to(device).eval()

    def tokens(self, body: dict[str, Any], chat: bool) -> list[int]:
        """Of a request: the prompt as the policy saw it, or in this model's own chat template; response and end."""
        response = str(body["response"])
        if chat:
            messages = [*body["messages"], {"role": "assistant", "content": response}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt, bos = str(body["prompt"]), self.tokenizer.bos_token
        asked = self.tokenizer(prompt, add_special_tokens=not (bos and prompt.startswith(bos)))["input_ids"]
        said = self.tokenizer(response, add_special_tokens=False)["input_ids"]
        return [*asked, *said, self.tokenizer.eos_token_id]

    @torch.inference_mode()
    def scores(self, sequences: Sequence[list[int]]) -> list[float]:
        """The reward of each sequence of tokens. Which token is the last is known here, whatever the padding."""
        rows = [torch.tensor(tokens) for tokens in sequences]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
        body = getattr(self._model, self._model.base_model_prefix)
        hidden = body(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        last = hidden[torch.arange(len(rows), device=self.device), lengths - 1]
        return self._model.score(last).squeeze(1).float().tolist()


@dataclass
class _Waiting:
    tokens: list[int]
    score: asyncio.Future[float]


class RewardServer:
    """Scores what is asked for at the same time together."""

    def __init__(self, model: RewardModel, options: ServeRewardOptions) -> None:
        self._model, self._options = model, options
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()

    def application(self) -> web.Application:
        """POST / scores; GET /health says that it can."""
        application = web.Application(client_max_size=LARGEST_BODY)
        application.router.add_post("/", self._answer)
        application.router.add_get("/health", self._health)
        application.cleanup_ctx.append(self._working)
        return application

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            tokens = self._model.tokens(await request.json(), self._options.chat)
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": f"expected JSON with prompt and response: {error!r}"}, status=400)
        if len(tokens) > self._options.max_tokens:
            said = f"prompt and response have {len(tokens)} tokens, more than max_tokens={self._options.max_tokens}"
            return web.json_response({"error": said}, status=413)
        waiting = _Waiting(tokens, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return web.json_response({"score": await waiting.score})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"model": self._options.model.path})

    async def _working(self, _: web.Application) -> Any:
        work = asyncio.create_task(self._work())
        yield
        work.cancel()

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._options.batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            scores: Sequence[float | Exception]
            try:
                scores = await asyncio.to_thread(self._model.scores, [one.tokens for one in batch])
            except Exception as error:  # the requests fail, and the server goes on
                scores = [error] * len(batch)
            for one, score in zip(batch, scores, strict=True):
                if one.score.done():  # its client has left
                    continue
                if isinstance(score, Exception):
                    one.score.set_exception(score)
                else:
                    one.score.set_result(score)


def serve(options: ServeRewardOptions, device: str) -> None:
    """Serve until the process is ended; the address is printed when it answers.

    Raises:
        UserError: the model cannot be used, or the port is taken.
    """
    model = RewardModel(options, device)
    try:
        asyncio.run(_serve(RewardServer(model, options), options))
    except OSError as error:
        raise UserError(f"host={options.host}, port={options.port}: cannot be listened on: {error}") from error


async def _serve(server: RewardServer, options: ServeRewardOptions) -> None:
    runner = web.AppRunner(server.application())
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port).start()
    host, port = runner.addresses[0][:2]
    print(f"reward model {options.model.path} at reward.http.url=http://{host}:{port}/", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
