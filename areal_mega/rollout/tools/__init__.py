"""Tools a model may call, by name. To add one, write its function and its line here; a user's own needs no line: its
name is ``package.module:NAME`` of a `Tool`, or of a function that makes one from the options.
"""

from __future__ import annotations

from collections.abc import Sequence

from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions
from areal_mega.rollout.tools.tool import Tool, ToolBox, ToolError
from areal_mega.runtime.imports import imported

__all__ = ["TOOLS", "Tool", "ToolBox", "ToolError", "load_tools"]

_HERE = "areal_mega.rollout.tools"
TOOLS = {
    "calculator": f"{_HERE}.calculator:calculator",
    "python": f"{_HERE}.python:python",
    "search": f"{_HERE}.search:search",
}


def load_tools(names: Sequence[str], options: RolloutOptions) -> ToolBox:
    """The tools of ``rollout.tools``.

    Raises:
        UserError: there is none of a name, or it cannot be imported or made.
    """
    tools = []
    for name in names:
        found = imported(TOOLS.get(name, name), f"rollout.tools={name}")
        tool = found if isinstance(found, Tool) else found(options)
        if not isinstance(tool, Tool):
            raise UserError(f"rollout.tools={name}: expected a Tool, found {type(tool).__name__}.")
        tools.append(tool)
    return ToolBox(tools)
