"""What a tool is, and a box of them that never raises for what a model did."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class ToolError(Exception):
    """The tool cannot do what it was asked; the model reads the message."""


@dataclass(frozen=True)
class Tool:
    """run: takes the parameters by name and returns text; a plain function runs in a thread, an async one as it is.

    parameters: JSON Schema of each parameter, by name; all are required but those in optional.
    """

    name: str
    description: str
    parameters: Mapping[str, dict[str, Any]]
    run: Callable[..., Any] = field(repr=False)
    optional: tuple[str, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI's API describe functions."""
        required = [name for name in self.parameters if name not in self.optional]
        parameters = {"type": "object", "properties": dict(self.parameters), "required": required}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


class ToolBox:
    """Tools by their names."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    @property
    def schemas(self) -> list[dict[str, Any]]:
        return [tool.schema for tool in self._tools.values()]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """What the tool says, and whether it did what it was asked; what went wrong is text for the model."""
        tool = self._tools.get(name)
        if tool is None:
            return f"error: there is no tool {name}; there are {', '.join(self._tools)}", False
        unknown = arguments.keys() - tool.parameters.keys()
        missing = tool.parameters.keys() - arguments.keys() - set(tool.optional)
        if unknown or missing:
            return f"error: {name} takes {', '.join(tool.parameters)}", False
        try:
            if inspect.iscoroutinefunction(tool.run):
                return str(await tool.run(**arguments)), True
            return str(await asyncio.to_thread(tool.run, **arguments)), True
        except ToolError as error:
            return f"error: {error}", False
