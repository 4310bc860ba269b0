"""What a family's table is made of: one row for each Hugging Face tensor, with its name at every holder and its split.

Rows that name the same parameter of a holder stand in it one below the other, in the order of the table. How a holder
divides each `Split` over its ranks is said once, in `megatron` and `sglang`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

VALUE_HEAD = "value_head.weight"  # at Megatron
SCORE = "score.weight"  # in folders: so transformers names the head of its sequence classifiers


class Split(Enum):
    """How a tensor is divided over tensor-parallel ranks. Weights are ``[output features, input features]``."""

    WHOLE = "on every rank"
    OUTPUT = "an equal part of the output features"
    INPUT = "an equal part of the input features"
    HEADS = "output features by attention head: Megatron interleaves q, k and v by query group, SGLang repeats k and v"
    LATENT = "output features of MLA's down projections: on every rank"
    VOCABULARY = "rows of the vocabulary, which each holder pads in its own way"


@dataclass(frozen=True)
class Row:
    """One Hugging Face tensor. ``{E}`` in a name is the expert's number: the whole model's in ``hf``, the rank's own
    in ``megatron``; without it, SGLang stacks the experts of a rank.

    shape: names of `model.Model.sizes`, with spaces between. te: the name in Megatron's TransformerEngine spec where
    it is another; grouped: likewise with TransformerEngine's grouped experts.
    """

    hf: str
    shape: str
    split: Split
    megatron: str
    sglang: str
    te: str = ""
    grouped: str = ""

    @property
    def is_expert(self) -> bool:
        """Whether every routed expert has such a tensor."""
        return "{E}" in self.hf


@dataclass(frozen=True)
class Family:
    """The rows of one transformer layer, and where the config has the numbers that not all families have.

    rows: ``rows(config, layer)`` are the layer's, in the order in which they stand. sizes: name in a row's shape →
    number, for sizes beyond those of `model.Model`. experts: the config's field with the number of routed experts, if
    the family has them.
    """

    rows: Callable[[Any, int], tuple[Row, ...]]
    sizes: Callable[[Any], Mapping[str, int]] = field(default=lambda hf: {})
    experts: str = ""


EMBEDDING = Row(
    "model.embed_tokens.weight",
    "vocab hidden",
    Split.VOCABULARY,
    "embedding.word_embeddings.weight",
    "model.embed_tokens.weight",
)
FINAL_NORM = Row("model.norm.weight", "hidden", Split.WHOLE, "decoder.final_layernorm.weight", "model.norm.weight")
OUTPUT = Row("lm_head.weight", "vocab hidden", Split.VOCABULARY, "output_layer.weight", "lm_head.weight")
VALUE = Row(SCORE, "one hidden", Split.WHOLE, VALUE_HEAD, SCORE)


def hf_name(row: Row, layer: int, expert: int = 0) -> str:
    """A layer's tensor in the checkpoint."""
    return f"model.layers.{layer}.{row.hf}".replace("{E}", str(expert))
