"""A supervised SGLang server: started, watched and ended together with this process."""

from __future__ import annotations

import http.client
import json
import random
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions
from areal_mega.rollout.arguments import HOST, engine_environment, server_arguments, visible_devices
from areal_mega.rollout.engine import USER_ERROR_STATUS

LOG_LINES_SHOWN = 25
# Below Linux's ephemeral range: no outgoing connection takes the port while the engine is starting.
FREE_PORTS = range(20000, 32000)
POLL_SECONDS = 0.1
# The engine is on this machine: a proxy of the environment must not come between.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class EngineError(RuntimeError):
    """The engine died or refused an order; its message carries the engine's own words."""


class SGLangServer:
    """One SGLang server process group on this machine, reachable on loopback with keys of its own.

    The constructor starts it and returns; the first use, or `wait_ready`, waits until it answers, so that the
    trainer can build its model meanwhile. Use it as a context manager; should this process die in any way,
    the guard process ends the engine.

    dtype: ``float32`` or ``bfloat16``. device: ``cpu`` or ``cuda``. seed: of the engine's random numbers. devices: the
    GPUs of its ranks, as this process counts them; None: those that SGLang takes.
    starts: how often it was started; after each time it has the weights of the model folder.

    Raises:
        UserError: ``rollout.port`` is taken.
    """

    def __init__(
        self,
        model_path: str,
        options: RolloutOptions,
        *,
        dtype: str,
        device: str,
        seed: int,
        log_path: str | Path,
        devices: Sequence[int] | None = None,
    ) -> None:
        self.options = options
        self.dtype = dtype
        self.log_path = Path(log_path)
        self.starts = 0
        self._environment = engine_environment(options, device)
        if devices is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = visible_devices(devices)
        self._arguments = partial(server_arguments, model_path, options, dtype=dtype, device=device, seed=seed)
        self._launch()

    def _launch(self) -> None:
        self.port = free_port() if self.options.port == 0 else claim_port(self.options.port)
        self.url = f"http://{HOST}:{self.port}"
        # New ones at each start, even where the port is the same: who has the old ones wants the weights there were.
        self.api_key, self.admin_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.starts += 1
        self._failure: str | None = None
        self._closed = self._ready = False
        self._deadline = time.monotonic() + self.options.start_timeout
        arguments = self._arguments(port=self.port, api_key=self.api_key, admin_key=self.admin_key)
        self._guard = self._start(arguments, self._environment)

    def restart(self) -> None:
        """End the engine and start it anew, with the weights of its model folder; a failure it had is forgotten.

        It has new keys, and a new port if ``rollout.port`` is 0. The log goes on in the same file. Returns at once,
        like the constructor.

        Raises:
            UserError: ``rollout.port`` is taken.
        """
        self._end()
        self._launch()

    def _start(self, arguments: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        python = [sys.executable, "-P", "-m"]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb" if self.starts == 1 else "ab") as log:
            guard = subprocess.Popen(
                [*python, "areal_mega.rollout.guard", *python, "areal_mega.rollout.engine"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        assert guard.stdin is not None
        guard.stdin.write(json.dumps(arguments).encode() + b"\n")
        guard.stdin.flush()
        return guard

    def wait_ready(self) -> None:
        """Return when the server answers; at once when it did before and is alive.

        Raises:
            UserError: an option of ``rollout.sglang`` does not exist, or the engine died at start or did not
                answer within ``rollout.start_timeout``. The server is closed then.
            EngineError: it died later; see `check`.
        """
        try:
            while not self.is_ready():
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.close()
            raise
        self.check()

    def is_ready(self) -> bool:
        """Whether it has answered since it was started.

        Raises:
            UserError: as `wait_ready`, which closes it besides.
        """
        if not self._ready:
            self._check_start()
            self._ready = self.answers()
        return self._ready

    def _check_start(self) -> None:
        status = self._guard.poll()
        if status == USER_ERROR_STATUS:
            raise UserError(self._last_log_lines(1))
        if status is not None:
            raise UserError(f"The SGLang engine died at start (exit status {status}).\n{self.log_report()}")
        if time.monotonic() > self._deadline:
            raise UserError(
                "The SGLang engine did not answer within "
                f"rollout.start_timeout={self.options.start_timeout:g} seconds; set it higher if the machine "
                f"is slow.\n{self.log_report()}"
            )

    def answers(self) -> bool:
        """Whether it answers now."""
        try:
            with HTTP.open(f"{self.url}/ready", timeout=5) as response:
                return response.status == 200
        except (OSError, http.client.HTTPException):
            return False

    def check(self) -> None:
        """Raise `EngineError` when the engine is dead, closed, or was marked as failed."""
        if self._failure:
            raise EngineError(self._failure)
        if self._closed:
            raise EngineError("The SGLang engine was closed.")
        status = self._guard.poll()
        if status is not None:
            raise EngineError(f"The SGLang engine died (exit status {status}).\n{self.log_report()}")

    def weight_version(self) -> int:
        """The version of the weights the engine generates with."""
        request = urllib.request.Request(f"{self.url}/model_info", headers={"Authorization": f"Bearer {self.api_key}"})
        return int(self._ask(request)["weight_version"])

    def mark_failed(self, reason: str) -> None:
        """Refuse all further use: the engine's weights or state are no longer known."""
        self._failure = reason

    def order(self, path: str, body: dict[str, Any] | None = None, timeout: float | None = None) -> dict[str, Any]:
        """POST to an administrative endpoint and return its JSON answer.

        timeout: seconds without any answer; ``rollout.request_timeout`` if it is not given.

        Raises:
            EngineError: the engine is dead, or refused; the message carries its own words.
        """
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body or {}).encode(),
            headers={"Authorization": f"Bearer {self.admin_key}", "Content-Type": "application/json"},
        )
        return self._ask(request, timeout)

    def _ask(self, request: urllib.request.Request, timeout: float | None = None) -> dict[str, Any]:
        self.wait_ready()
        path = request.selector
        try:
            with HTTP.open(request, timeout=timeout or self.options.request_timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace")
            raise EngineError(f"SGLang refused {path} (HTTP {error.code}): {words}") from error
        except (OSError, http.client.HTTPException) as error:
            self.check()
            raise EngineError(f"SGLang did not answer {path}: {error}\n{self.log_report()}") from error
        return json.loads(answer) if answer else {}

    def close(self) -> None:
        """End the engine and all its processes; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        self._end()

    def _end(self) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def __enter__(self) -> SGLangServer:
        self.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log_report(self) -> str:
        """Where the engine's log is, and its last lines."""
        return f"Last lines of its log, {self.log_path}:\n{self._last_log_lines(LOG_LINES_SHOWN)}"

    def _last_log_lines(self, count: int) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-count:])


def free_port() -> int:
    """A port of `FREE_PORTS` on which nobody listens."""
    for port in random.SystemRandom().sample(FREE_PORTS, 100):
        if _is_free(port):
            return port
    raise UserError(
        f"No free port was found between {FREE_PORTS.start} and {FREE_PORTS.stop}; "
        "set rollout.port to one you know to be free."
    )


def claim_port(port: int) -> int:
    """`port` itself, if nobody listens on it."""
    if not _is_free(port):
        raise UserError(
            f"rollout.port={port} is taken by another process; `ss -ltnp 'sport = :{port}'` shows which. "
            "Stop it, or set rollout.port=0 to take a free port."
        )
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
