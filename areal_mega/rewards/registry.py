"""The verifiers, by name.

A verifier is a function ``(response, prompt) -> Score``; a number or a truth value is a score as well. It depends on
nothing but its arguments. To add one, write the function and its line here. A user's own needs no line: its name is
``package.module:function``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.data.sample import Prompt

Verify = Callable[[str, Prompt], Any]


@dataclass(frozen=True)
class Verifier:
    """path: module and function. help: what it accepts. reference: a response that says a reference answer and nothing
    else, for the self-test; None where the data has no answer to test with.

    runs: ``here`` for functions that cannot hang, in a killable ``worker``, or on a ``remote`` server.
    seconds: time limit of one answer.
    """

    path: str
    help: str
    reference: Callable[[str], str] | None = str
    runs: str = "worker"
    seconds: float = 5.0


def _box(answer: str) -> str:
    return answer if r"\boxed" in answer else rf"\boxed{{{answer}}}"


def _fence(program: str) -> str:
    return program if "```" in program else f"```python\n{program}\n```"


_REWARDS = "areal_mega.rewards"
VERIFIERS: dict[str, Verifier] = {
    "exact_match": Verifier(f"{_REWARDS}.text:exact_match", "the response is the answer", runs="here"),
    "final_number": Verifier(f"{_REWARDS}.text:final_number", "its last number is the answer's", runs="here"),
    "math": Verifier(f"{_REWARDS}.math:math", "its answer equals the reference mathematically", _box),
    "choice": Verifier(f"{_REWARDS}.choice:choice", "it picks the right option", _box),
    "code": Verifier(f"{_REWARDS}.code:code", "its program passes all tests, in a sandbox", _fence, seconds=120.0),
    "reasoning_gym": Verifier(f"{_REWARDS}.procedural:procedural", "the task's own score_answer", seconds=10.0),
    "http": Verifier(f"{_REWARDS}.remote:http_scores", "what the server at reward.url says", None, runs="remote"),
    "think_format": Verifier(f"{_REWARDS}.text:think_format", "<think>...</think>, then text", None, runs="here"),
    "answer_format": Verifier(f"{_REWARDS}.text:answer_format", "ends with <answer>...</answer>", None, runs="here"),
    "think_answer_format": Verifier(f"{_REWARDS}.text:think_answer_format", "both, nothing else", None, runs="here"),
    "boxed_format": Verifier(f"{_REWARDS}.text:boxed_format", r"there is a \boxed{...}", None, runs="here"),
}
# Other words for the same, in data sets.
TASKS = {name: name for name in VERIFIERS} | {"stem": "math", "mcq": "choice"}


def verifier(name: str) -> Verifier:
    """The verifier of a name; a user's own by its import path.

    Raises:
        UserError: there is none of that name.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" in name:
        return Verifier(name, "your own", seconds=10.0)
    raise UserError(
        f"no verifier is called {name!r}; there are {', '.join(VERIFIERS)}, or your own as module:function."
    )


@cache
def load(name: str) -> Verify:
    """The function of a verifier. A user's own is found from the current folder, too.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    module, _, function = verifier(name).path.partition(":")
    if name not in VERIFIERS and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the verifier {name} cannot be imported: {error}.") from error
    if not callable(found):
        raise UserError(f"the verifier {name} is no function.")
    return found
