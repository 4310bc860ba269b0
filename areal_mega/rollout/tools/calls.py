"""Tool calls in what a model wrote, in the shapes that models are trained on.

- ``hermes``: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them (Hermes, Qwen).
- ``mistral``: ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``, up to the end.
- ``json``: the whole answer is ``{"name": ..., "parameters": {...}}`` (Llama 3.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True)
class ToolCall:
    """error: why this is no call that can be made; the model is told."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def call_format(chat_template: str) -> str:
    """The shape a chat template asks for."""
    if "<tool_call>" in chat_template:
        return "hermes"
    return "mistral" if _MISTRAL in chat_template else "json"


def find_calls(text: str, shape: str) -> tuple[str, list[ToolCall]]:
    """What the model said beside its calls, and the calls, in their order."""
    return CALL_FORMATS[shape](text)


def _hermes(text: str) -> tuple[str, list[ToolCall]]:
    return _TAGGED.sub("", text).strip(), [_call(one) for one in _TAGGED.findall(text)]


def _mistral(text: str) -> tuple[str, list[ToolCall]]:
    said, marker, calls = text.partition(_MISTRAL)
    if not marker:
        return text.strip(), []
    try:
        found = json.loads(calls)
    except ValueError:
        return said.strip(), [_call(calls)]
    return said.strip(), [_call(one) for one in (found if isinstance(found, list) else [found])]


def _json(text: str) -> tuple[str, list[ToolCall]]:
    try:
        found = json.loads(text.strip().removeprefix("<|python_tag|>"))
    except ValueError:
        return text.strip(), []
    return ("", [_call(found)]) if isinstance(found, dict) and "name" in found else (text.strip(), [])


def _call(found: Any) -> ToolCall:
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError as error:
            return ToolCall("", error=f"the call is not JSON: {error}")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return ToolCall("", error='a call is an object with "name" and "arguments"')
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, dict):
        return ToolCall(found["name"], error="the arguments are an object, by parameter")
    return ToolCall(found["name"], arguments)


CALL_FORMATS: dict[str, Callable[[str], tuple[str, list[ToolCall]]]] = {
    "hermes": _hermes,
    "mistral": _mistral,
    "json": _json,
}
