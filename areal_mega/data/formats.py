r"""Formats of data sets: what a record of each looks like, and how it becomes a problem.

Each format is one line of the table at the end. To add one, write the function that reads its records.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from areal_mega.data.boxes import boxed

USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"


class LineError(ValueError):
    """A record is not what its format says; the reader adds file and line."""


class NoAnswerError(LineError):
    """A record is well formed, but has no answer to judge by."""


@dataclass(frozen=True)
class Line:
    """A record, whatever its format was.

    question: what is asked. messages: the chat, where the record has one; the question is its last turn then.
    templated: the question is a whole prompt already. answers: all that are right. learned: what SFT learns to say.
    """

    question: str
    answers: tuple[str, ...]
    task: str = ""
    learned: str | None = None
    messages: list[dict[str, str]] | None = None
    templated: bool = False
    id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """help: its fields. matches: a record is of this format. read: the record as a line; raises LineError."""

    help: str
    matches: Callable[[Any], bool]
    read: Callable[[Any], Line]


def format_of(record: Any) -> str:
    """The name of the first format whose fields the record has; ours where there is none, whose reader says why."""
    return next((name for name, form in FORMATS.items() if form.matches(record)), "ours")


def _ours(record: dict[str, Any]) -> Line:
    messages = record.get("messages")
    if messages is not None:
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise LineError("field 'messages' must be a list of objects with role and content.")
        question = str(messages[-1].get("content", ""))
    else:
        question = _text(record, "prompt")
    solutions = _texts(record, "solutions") if "solutions" in record else []
    tested = "input_output" in record or "test" in record
    first = [_text(record, "answer")] if "answer" in record or not (solutions or tested) else []
    return Line(
        question,
        _answers(first + solutions or [""]),
        task=_text(record, "task") if "task" in record else "",
        messages=messages,
        id=_id(record, "id"),
        metadata=_rest(record, "prompt", "messages", "answer", "solutions", "task", "id"),
    )


def _boba(record: dict[str, Any]) -> Line:
    task = _text(record, "task") if "task" in record else "math"
    if task != "code" and not record.get("solutions"):
        raise NoAnswerError("field 'solutions' is missing or empty.")
    return Line(
        _text(record, "prompt"),
        _answers(_texts(record, "solutions") if record.get("solutions") else [""]),
        task=task,
        templated=True,
        id=_id(record, "query_id"),
        metadata=_rest(record, "prompt", "solutions", "task", "query_id"),
    )


def _boba_sft(record: dict[str, Any]) -> Line:
    answer = _text(record, "answer")
    return Line(_text(record, "prompt"), (answer,), templated=True, id=_id(record, "id"), metadata={})


def _gsm8k(record: dict[str, Any]) -> Line:
    number = _number(record.get("answer"))
    solution = _text(record, "answer") if number is None else number
    return Line(
        _text(record, "question"),
        (solution.rpartition("####")[2].strip(),),
        task="math",
        learned=solution,
        id=_id(record, "id"),
        metadata=_rest(record, "id"),
    )


def _math(record: dict[str, Any]) -> Line:
    solution = record.get("solution")
    answer = record.get("answer")
    answer = _number(answer) or answer
    if not answer and isinstance(solution, str):
        answer = next(iter(reversed(boxed(solution))), None)
    if not isinstance(answer, str) or not answer.strip():
        raise NoAnswerError(r"no answer: neither text in 'answer' nor a \boxed{} in 'solution'.")
    return Line(
        _text(record, "problem"),
        (answer.strip(),),
        task="math",
        learned=solution if isinstance(solution, str) and solution else answer,
        id=_id(record, "unique_id", "id"),
        metadata=_rest(record, "problem", "answer", "unique_id", "id"),
    )


def _dapo(record: dict[str, Any]) -> Line:
    messages = record["prompt"]
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        raise LineError("field 'prompt' must be a list of objects with role and content.")
    truth = record["reward_model"].get("ground_truth")
    truths = truth if isinstance(truth, list) else [truth]
    if not truths or not all(isinstance(t, str) for t in truths):
        raise NoAnswerError("field 'reward_model.ground_truth' must be text.")
    code = "cod" in str(record.get("ability", "")).lower()
    return Line(
        messages[-1]["content"],
        _answers(truths),
        task="code" if code else "math",
        messages=messages,
        id=_id(record.get("extra_info") or {}, "index"),
        metadata=_rest(record, "prompt", "reward_model"),
    )


def _orz(record: Any) -> Line:
    """Two turns, as a list or as an object with the keys 0 and 1."""
    try:
        asked, told = (record[0], record[1]) if isinstance(record, list) else (record["0"], record["1"])
        question, answer = asked["value"], told["ground_truth"]["value"]
    except (KeyError, IndexError, TypeError):
        raise LineError(
            "expected two turns, with 'value' in the first and 'ground_truth.value' in the second."
        ) from None
    if not isinstance(question, str) or not isinstance(answer, str):
        raise LineError("'value' of the first turn and 'ground_truth.value' of the second must be text.")
    return Line(question, (answer.strip(),), task="math")


def _reasoning_gym(record: dict[str, Any]) -> Line:
    question = _text(record, "question")
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise LineError(f"field 'answer' must be text or null, found {type(answer).__name__}.")
    metadata = {**record["metadata"], "question": question}
    return Line(question, (answer or "",), task="reasoning_gym", id=_id(record, "id"), metadata=metadata)


def _humaneval(record: dict[str, Any]) -> Line:
    head = _text(record, "prompt")
    return Line(
        f"Complete this Python function. Answer with the whole program in one code block.\n\n```python\n{head}```",
        (head + _text(record, "canonical_solution"),) if record.get("canonical_solution") else ("",),
        task="code",
        id=_id(record, "task_id"),
        metadata={"test": _text(record, "test"), "entry_point": _text(record, "entry_point")},
    )


def _gpqa(record: dict[str, Any]) -> Line:
    """The options in an order that depends on the question only: in the file the right one comes first."""
    question = _text(record, "Question").strip()
    right = _text(record, "Correct Answer").strip()
    options = [right, *(_text(record, f"Incorrect Answer {i}").strip() for i in (1, 2, 3))]
    random.Random(question).shuffle(options)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    return Line(
        f"{question}\n\n{listed}\n\nAnswer with the letter of the right option.",
        ("ABCD"[options.index(right)],),
        task="choice",
        id=_id(record, "Record ID"),
        metadata={"choices": options},
    )


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda record: isinstance(record, dict) and all(name in record for name in names)


def _is_chat_prompt(record: Any) -> bool:
    return _has("prompt", "reward_model")(record) and isinstance(record["prompt"], list) and bool(record["prompt"])


def _is_templated(record: Any) -> bool:
    return _has("prompt", "answer")(record) and isinstance(record["prompt"], str) and ASSISTANT in record["prompt"]


def _is_procedural(record: Any) -> bool:
    metadata = record.get("metadata") if _has("question", "metadata")(record) else None
    return isinstance(metadata, dict) and "source_dataset" in metadata


# In this order; the first that matches a record is its format.
FORMATS: dict[str, Format] = {
    "orz": Format(
        "two turns: [{value}, {ground_truth: {value}}]", lambda r: isinstance(r, list) or _has("0", "1")(r), _orz
    ),
    "boba": Format("prompt (templated), query_id, task, solutions, input_output", _has("query_id", "prompt"), _boba),
    "boba-sft": Format(f"prompt (templated, with {ASSISTANT}), answer", _is_templated, _boba_sft),
    "dapo": Format("prompt (messages), reward_model.ground_truth, ability (also verl's sets)", _is_chat_prompt, _dapo),
    "humaneval": Format("task_id, prompt, entry_point, test", _has("prompt", "entry_point", "test"), _humaneval),
    "gpqa": Format("Question, Correct Answer, Incorrect Answer 1 to 3", _has("Question", "Correct Answer"), _gpqa),
    "reasoning-gym": Format("question, answer, metadata.source_dataset", _is_procedural, _reasoning_gym),
    "ours": Format("prompt or messages; answer and/or solutions; task, id", _has("prompt"), _ours),
    "gsm8k": Format("question, answer (behind ####, where there is one)", _has("question", "answer"), _gsm8k),
    "math": Format("problem, answer and/or solution", _has("problem"), _math),
    "deepscaler": Format("the same: problem, answer, solution", _has("problem"), _math),
}


def _text(record: dict[str, Any], name: str) -> str:
    if name not in record:
        raise LineError(f"field '{name}' is missing; the line has: {', '.join(record) or 'nothing'}.")
    if not isinstance(record[name], str):
        raise LineError(f"field '{name}' must be text, found {type(record[name]).__name__}.")
    return record[name]


def _texts(record: dict[str, Any], name: str) -> list[str]:
    values = record[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise LineError(f"field '{name}' must be a list of texts.")
    return values


def _number(value: Any) -> str | None:
    """A number as text; 27.0 is 27."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return str(int(value)) if float(value).is_integer() else str(value)


def _answers(texts: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _id(record: dict[str, Any], *names: str) -> str | None:
    return next((str(record[name]) for name in names if name in record), None)


def _rest(record: dict[str, Any], *known: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in known}
