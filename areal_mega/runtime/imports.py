"""A user's own code, by its import path."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from areal_mega.config.errors import UserError


def imported(path: str, option: str) -> Any:
    """What ``package.module:NAME`` names; modules are found from the current folder, too.

    option: the option that named it, with its value, for messages.

    Raises:
        UserError: there is none, or its module cannot be imported.
    """
    module, _, name = path.partition(":")
    if not name:
        raise UserError(f"{option}: expected a name that is known, or your own as package.module:NAME.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option}: cannot be imported: {error}.") from error
