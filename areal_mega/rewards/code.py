"""Programs, judged by test cases. Every test must pass.

The tests are the metadata of the problem:

- ``input_output``: ``{"inputs": [...], "outputs": [...], "fn_name": "name"}``, as an object or as JSON text (the format
  of APPS, LiveCodeBench and boba). With ``fn_name`` each input is the list of arguments of a call, and the output its
  value; without, an input is what the program reads and an output what it writes.
- ``test`` (and ``entry_point``): Python text with assertions, as in HumanEval. It runs beside the program, so a program
  that looks for it can pass without being right; the expected outputs of the other two never enter the sandbox.

``time_limit`` (seconds of each test) and ``memory_limit`` (MiB) may stand beside them.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Sequence
from typing import Any

from areal_mega.data.sample import Prompt
from areal_mega.rewards.answers import conclusion
from areal_mega.rewards.score import Score
from areal_mega.runtime.sandbox import MEBIBYTE, Limits, Run, run

_BLOCK = re.compile(r"```([A-Za-z0-9+#]*)[^\n]*\n(.*?)```", re.DOTALL)
_SECONDS, _MEMORY = 6.0, 1024
_TOLERANCE = 1e-6

# Runs in the sandbox: calls the function of a program and writes one JSON line for each call. What the program itself
# prints goes nowhere.
_CALLS = """
import json, os, sys
job = json.load(sys.stdin)
out = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
scope = {"__name__": "program"}
exec(compile(job["source"], "program", "exec"), scope)
name = job["name"]
function = getattr(scope["Solution"](), name) if "Solution" in scope and name not in scope else scope[name]
for arguments in job["calls"]:
    out.write(json.dumps(function(*arguments)) + "\\n")
    out.flush()
"""

_ASSERTIONS = """
import json, os, sys
job = json.load(sys.stdin)
out = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
word = job.pop("word")
scope = {"__name__": "program"}
exec(compile(job["source"] + "\\n\\n" + job["test"], "program", "exec"), scope)
out.write(word)
out.flush()
"""


def code(response: str, prompt: Prompt) -> Score:
    """1 if the last code block of the response passes every test.

    The part ``tests_passed`` is the share of tests passed before the first that failed.

    Raises:
        ValueError: the problem has no tests, or they are malformed.
    """
    limits = _limits(prompt.metadata)
    check = _tests(prompt.metadata)
    source = _program(response)
    if source is None:
        return Score(0.0, {"tests_passed": 0.0}, "no code block")
    passed, total, note = check(source, limits)
    return Score(float(passed == total), {"tests_passed": passed / total}, note)


def _program(response: str) -> str | None:
    """The last block that is Python, or says nothing of its language."""
    blocks = [(language.lower(), text) for language, text in _BLOCK.findall(conclusion(response))]
    ours = [text for language, text in blocks if language in ("python", "python3", "py", "")]
    return ours[-1] if ours else None


def _limits(metadata: dict[str, Any]) -> Limits:
    seconds = float(metadata.get("time_limit") or _SECONDS)
    return Limits(seconds=seconds, memory=int(metadata.get("memory_limit") or _MEMORY) * MEBIBYTE)


def _tests(metadata: dict[str, Any]) -> Any:
    """A function (source, limits) → (passed, total, note) that runs the problem's tests."""
    if metadata.get("test"):
        entry = f"\ncheck({metadata['entry_point']})\n" if metadata.get("entry_point") else ""
        return lambda source, limits: _assertions(source, str(metadata["test"]) + entry, limits)
    tests = metadata.get("input_output")
    if isinstance(tests, str):
        tests = json.loads(tests)
    if not isinstance(tests, dict) or not tests.get("inputs") or len(tests["inputs"]) != len(tests.get("outputs", ())):
        raise ValueError("no test cases: expected input_output with as many inputs as outputs, or test")
    inputs, outputs, name = tests["inputs"], tests["outputs"], tests.get("fn_name")
    if name:
        return lambda source, limits: _calls(source, name, inputs, outputs, limits)
    return lambda source, limits: _programs(source, inputs, outputs, limits)


def _calls(source: str, name: str, inputs: Sequence, outputs: Sequence, limits: Limits) -> tuple[int, int, str]:
    """All calls in one process; its time is that of one test for each call, but no more than ten of them."""
    calls = [json.loads(f"[{','.join(i.splitlines())}]") if isinstance(i, str) else i for i in inputs]
    seconds = limits.seconds * min(len(calls), 10)
    ended = run(_CALLS, _job(source=source, name=name, calls=calls), Limits(seconds, limits.memory))
    values = []
    for line in ended.stdout.decode(errors="replace").splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            break
    for passed, (expected, value) in enumerate(zip(outputs, values, strict=False)):
        if not _same_value(value, expected):
            return passed, len(outputs), f"test {passed + 1}: another value"
    passed = min(len(values), len(outputs))
    return passed, len(outputs), "" if passed == len(outputs) else _why(ended, passed)


def _programs(source: str, inputs: Sequence, outputs: Sequence, limits: Limits) -> tuple[int, int, str]:
    """One process for each test, up to the first that fails."""
    for passed, (given, expected) in enumerate(zip(inputs, outputs, strict=True)):
        ended = run(source, _text(given).encode(), limits)
        if ended.status != "ok":
            return passed, len(inputs), _why(ended, passed)
        if not _same_output(ended.stdout.decode(errors="replace"), _text(expected)):
            return passed, len(inputs), f"test {passed + 1}: another output"
    return len(inputs), len(inputs), ""


def _assertions(source: str, test: str, limits: Limits) -> tuple[int, int, str]:
    word = secrets.token_hex(16)
    ended = run(_ASSERTIONS, _job(source=source, test=test, word=word), limits)
    passed = ended.stdout.decode(errors="replace") == word
    return int(passed), 1, "" if passed else _why(ended, 0)


def _job(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _why(ended: Run, passed: int) -> str:
    last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
    reasons = {"time": "not done in time", "output": "wrote too much", "error": last or f"exit {ended.exit_code}"}
    return f"test {passed + 1}: {reasons.get(ended.status, 'ended early')}"


def _text(x: Any) -> str:
    """Some sets give the lines of a text as a list."""
    return "\n".join(map(str, x)) if isinstance(x, list) else str(x)


def _same_output(said: str, expected: str) -> bool:
    """Equal up to white space; decimal fractions up to 1e-6, relative."""
    a, b = said.split(), expected.split()
    return len(a) == len(b) and all(x == y or _close(x, y) for x, y in zip(a, b, strict=True))


def _close(said: str, expected: str) -> bool:
    if "." not in expected and "e" not in expected.lower():
        return False
    try:
        return math.isclose(float(said), float(expected), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except ValueError:
        return False


def _same_value(value: Any, expected: Any) -> bool:
    """Equal as JSON; APPS wraps some expected values in a list of one."""
    if _equal(value, expected):
        return True
    return isinstance(expected, list) and len(expected) == 1 and _equal(value, expected[0])


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(b, float) and isinstance(a, (int, float)) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return type(a) is type(b) and a == b
