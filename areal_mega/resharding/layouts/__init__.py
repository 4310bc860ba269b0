"""For every model family one table; from it, what a Megatron rank, an SGLang rank and a folder of files hold.

Read `families` for the tables, `table` for their columns, `megatron` and `sglang` for the rules of each holder.
"""

from areal_mega.resharding.layouts.families import FAMILIES
from areal_mega.resharding.layouts.files import contiguous_strides, file_layout, whole_tensors
from areal_mega.resharding.layouts.megatron import megatron_layout
from areal_mega.resharding.layouts.places import MegatronGrid, MegatronPlace, SGLangGrid, SGLangPlace
from areal_mega.resharding.layouts.sglang import sglang_layout
from areal_mega.resharding.layouts.table import SCORE, VALUE_HEAD

__all__ = [
    "FAMILIES",
    "SCORE",
    "VALUE_HEAD",
    "MegatronGrid",
    "MegatronPlace",
    "SGLangGrid",
    "SGLangPlace",
    "contiguous_strides",
    "file_layout",
    "megatron_layout",
    "sglang_layout",
    "whole_tensors",
]
