"""The compiled kernels. Their arguments are named in csrc/bindings, where alone they stand; `areal_mega.ops.native`
calls them by name."""

from typing import Any

def available_isas() -> list[str]: ...
def __getattr__(name: str) -> Any: ...
