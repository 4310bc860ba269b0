"""The engine process: ``python -P -m areal_mega.rollout.engine``, started by the guard.

Reads one JSON line, the fields of SGLang's ``ServerArgs``, from standard input and serves until it is ended.
``-P`` keeps the working directory off the import path: a user's file called http.py must not break SGLang.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable
from typing import Any

USER_ERROR_STATUS = 64


def main() -> int:
    """Serve; returns `USER_ERROR_STATUS`, the message last in the log, for options SGLang does not know."""
    arguments: dict[str, Any] = json.loads(sys.stdin.readline())

    from sglang.srt.arg_groups.arg_utils import record_fields
    from sglang.srt.server_args import ServerArgs

    unknown = explain_unknown(arguments, {field.name for field in record_fields(ServerArgs)})
    if unknown:
        print(unknown, file=sys.stderr, flush=True)
        return USER_ERROR_STATUS

    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.utils import kill_itself_when_parent_died

    from areal_mega.rollout.cpu_backend import run_scheduler

    kill_itself_when_parent_died()
    load_plugins()
    server_args = ServerArgs(**arguments)
    server_args.resolve_once()
    launch_server(server_args, run_scheduler_process_func=run_scheduler)
    return 0


def explain_unknown(names: Iterable[str], known: set[str]) -> str:
    """One line that names each unknown option and its closest matches; empty when all are known."""
    problems = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f" (did you mean {', '.join(close)}?)" if close else ""
            problems.append(f"rollout.sglang.{name}: the installed SGLang has no such option{hint}")
    return "; ".join(problems)


if __name__ == "__main__":
    sys.exit(main())
