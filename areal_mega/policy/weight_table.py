"""How Megatron's parameters are made of Hugging Face tensors: one table, used to load and to export.

A rank's parameter is a concatenation of `Piece`s, each a slice of one named HF tensor. Loading reads the
pieces; exporting writes them back to their places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from areal_mega.policy.rotary import head_dim

VALUE_HEAD = "value_head.weight"


@dataclass(frozen=True)
class Piece:
    """``[start, stop)`` along dimension ``dim`` of the HF tensor ``name`` with full shape ``shape``.

    Pieces of one parameter are concatenated along dimension 0.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    start: int
    stop: int


@dataclass(frozen=True)
class Cut:
    """What the rules need to know: the model's sizes and this rank's place in TP."""

    tp: int
    rank: int
    vocab: int
    groups: int
    heads_per_group: int
    head_dim: int


Rule = Callable[[tuple[str, ...], torch.Size, Cut], list[Piece]]


def replicated(names: tuple[str, ...], local: torch.Size, cut: Cut) -> list[Piece]:
    """The whole tensor on every rank."""
    return [Piece(names[0], tuple(local), 0, 0, local[0])]


def columns(names: tuple[str, ...], local: torch.Size, cut: Cut) -> list[Piece]:
    """An equal part of the input features (row-parallel layers)."""
    width = local[1]
    return [Piece(names[0], (local[0], width * cut.tp), 1, width * cut.rank, width * (cut.rank + 1))]


def vocabulary(names: tuple[str, ...], local: torch.Size, cut: Cut) -> list[Piece]:
    """An equal part of the vocabulary, rounded up to a multiple of TP; the rows past its end are padding."""
    start, stop = (min(local[0] * r, cut.vocab) for r in (cut.rank, cut.rank + 1))
    return [Piece(names[0], (cut.vocab, local[1]), 0, start, stop)]


def gate_up(names: tuple[str, ...], local: torch.Size, cut: Cut) -> list[Piece]:
    """The rank's part of the gate, then its part of the up projection."""
    rows = local[0] // 2
    shape = (rows * cut.tp, local[1])
    return [Piece(name, shape, 0, rows * cut.rank, rows * (cut.rank + 1)) for name in names]


def query_groups(names: tuple[str, ...], local: torch.Size, cut: Cut) -> list[Piece]:
    """For each of the rank's query groups: its query heads, its key head, its value head."""
    per_rank = cut.groups // cut.tp
    heads = (cut.heads_per_group, 1, 1)
    return [
        Piece(
            name,
            (cut.groups * n * cut.head_dim, *local[1:]),
            0,
            g * n * cut.head_dim,
            (g + 1) * n * cut.head_dim,
        )
        for g in range(per_rank * cut.rank, per_rank * (cut.rank + 1))
        for name, n in zip(names, heads, strict=True)
    ]


_LAYER = {
    "input_layernorm.weight": (replicated, "input_layernorm.weight"),
    "self_attention.linear_qkv.weight": (query_groups, "self_attn.{q,k,v}_proj.weight"),
    "self_attention.linear_qkv.bias": (query_groups, "self_attn.{q,k,v}_proj.bias"),
    "self_attention.q_layernorm.weight": (replicated, "self_attn.q_norm.weight"),
    "self_attention.k_layernorm.weight": (replicated, "self_attn.k_norm.weight"),
    "self_attention.linear_proj.weight": (columns, "self_attn.o_proj.weight"),
    "pre_mlp_layernorm.weight": (replicated, "post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": (gate_up, "mlp.{gate,up}_proj.weight"),
    "mlp.linear_fc2.weight": (columns, "mlp.down_proj.weight"),
}

TABLE: dict[str, tuple[Rule, str]] = {
    "embedding.word_embeddings.weight": (vocabulary, "model.embed_tokens.weight"),
    **{f"decoder.layers.N.{ours}": (rule, f"model.layers.N.{hf}") for ours, (rule, hf) in _LAYER.items()},
    "decoder.final_layernorm.weight": (replicated, "model.norm.weight"),
    "output_layer.weight": (vocabulary, "lm_head.weight"),
    VALUE_HEAD: (replicated, VALUE_HEAD),
}


def pieces(parameter: str, local: torch.Size, hf: PretrainedConfig, tp: int, rank: int) -> list[Piece]:
    """What a TP rank's parameter of shape ``local`` is made of; its layer number is the whole model's."""
    layer = re.search(r"\.layers\.(\d+)\.", parameter)
    rule, pattern = TABLE[re.sub(r"\.layers\.\d+\.", ".layers.N.", parameter)]
    if parameter == "output_layer.weight" and hf.tie_word_embeddings:
        pattern = "model.embed_tokens.weight"
    names = tuple(_braces(pattern.replace(".N.", f".{layer[1]}.") if layer else pattern))
    groups = hf.num_key_value_heads
    return rule(names, local, Cut(tp, rank, hf.vocab_size, groups, hf.num_attention_heads // groups, head_dim(hf)))


def _braces(pattern: str) -> Iterator[str]:
    """``a{b,c}d`` → ``abd``, ``acd``, as a shell expands it."""
    match = re.search(r"\{(.*)\}", pattern)
    for choice in match[1].split(",") if match else [""]:
        yield pattern.replace(match[0], choice) if match else pattern
