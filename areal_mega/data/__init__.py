from areal_mega.data.packed import PackedBatch
from areal_mega.data.sample import Prompt, Sample

__all__ = ["PackedBatch", "Prompt", "Sample"]
