from typing import TYPE_CHECKING, Any

from areal_mega.data.sample import Prompt, Sample

if TYPE_CHECKING:
    from areal_mega.data.packed import PackedBatch

__all__ = ["PackedBatch", "Prompt", "Sample"]


def __getattr__(name: str) -> Any:
    """`PackedBatch` when it is asked for: a process that only judges answers has no use for torch."""
    if name == "PackedBatch":
        from areal_mega.data.packed import PackedBatch

        return PackedBatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
