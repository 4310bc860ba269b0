"""What a Megatron rank holds (megatron-core 0.16.1), in the order and by the names of its parameters.

Layers are numbered as in the whole model, whatever stage or virtual stage they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from areal_mega.resharding.coordinates import Layout
from areal_mega.resharding.layouts.assembly import Assembly, Interval, share
from areal_mega.resharding.layouts.model import Model
from areal_mega.resharding.layouts.places import MegatronPlace
from areal_mega.resharding.layouts.table import EMBEDDING, FINAL_NORM, OUTPUT, VALUE, Row, Split, hf_name


def megatron_layout(hf: Any, place: MegatronPlace, critic: bool = False) -> Layout:
    """The parameters of one rank, and the router's bias, which is a buffer.

    hf: Hugging Face config, or any object with its fields. critic: a value head in the place of the output layer.

    Raises:
        UserError: the family is unknown, or the layout does not divide the model.
    """
    model = Model(hf, critic)
    place.check(model)
    assembly = Assembly()
    if place.pp_rank == 0:
        _add_vocabulary(assembly, EMBEDDING.megatron, EMBEDDING.hf, model, place)
    for layer in place.layers(model.layers):
        _add_layer(assembly, model, layer, place)
    if place.pp_rank == place.pp - 1:
        assembly.add(FINAL_NORM.megatron, FINAL_NORM.hf, model.shape(FINAL_NORM), (0, model.sizes["hidden"]))
        _add_head(assembly, model, place)
    return assembly.layout()


def _add_head(assembly: Assembly, model: Model, place: MegatronPlace) -> None:
    if model.critic:
        assembly.add(VALUE.megatron, VALUE.hf, model.shape(VALUE), (0, 1))
    elif not model.tied:
        _add_vocabulary(assembly, OUTPUT.megatron, OUTPUT.hf, model, place)
    elif place.pp > 1:  # the last stage keeps a copy of the first one's embedding
        _add_vocabulary(assembly, OUTPUT.megatron, EMBEDDING.hf, model, place)


def _add_vocabulary(assembly: Assembly, parameter: str, tensor: str, model: Model, place: MegatronPlace) -> None:
    """Padded to the next multiple of tp; the padding is at the end of the last ranks."""
    shape = model.shape(EMBEDDING)
    each = -(-shape[0] // place.tp)
    start, stop = (min(each * rank, shape[0]) for rank in (place.tp_rank, place.tp_rank + 1))
    assembly.add(parameter, tensor, shape, (start, stop), padded_to=each)


def _add_layer(assembly: Assembly, model: Model, layer: int, place: MegatronPlace) -> None:
    for is_expert, rows in groupby(model.layer(layer), key=lambda row: row.is_expert):
        if is_expert:
            _add_experts(assembly, model, list(rows), layer, place)
        else:
            _add_rows(assembly, model, list(rows), layer, place)


def _add_rows(assembly: Assembly, model: Model, rows: Sequence[Row], layer: int, place: MegatronPlace) -> None:
    for split, same in groupby(rows, key=lambda row: (row.split is Split.HEADS) and row.megatron):
        if split:
            for row, part in _query_groups(list(same), model, place):
                assembly.add(_name(row, layer, place), hf_name(row, layer), model.shape(row), part)
        else:
            for row in same:
                parts = _parts(row.split, model.shape(row), place)
                assembly.add(_name(row, layer, place), hf_name(row, layer), model.shape(row), *parts)


def _add_experts(assembly: Assembly, model: Model, rows: Sequence[Row], layer: int, place: MegatronPlace) -> None:
    experts = range(*share(model.experts, place.ep, place.ep_rank))
    for local, expert in enumerate(experts):
        for row in rows:
            shape = model.shape(row)
            part = share(shape[row.split is Split.INPUT], place.etp, place.etp_rank)
            parts = ((0, shape[0]), part) if row.split is Split.INPUT else (part, None)
            assembly.add(_name(row, layer, place, local), hf_name(row, layer, expert), shape, *parts)


def _parts(split: Split, shape: tuple[int, ...], place: MegatronPlace) -> tuple[Interval, Interval | None]:
    """Rows and columns of a tensor that are on this rank."""
    if split is Split.OUTPUT:
        return share(shape[0], place.tp, place.tp_rank), None
    return (0, shape[0]), share(shape[1], place.tp, place.tp_rank) if split is Split.INPUT else None


def _query_groups(rows: Sequence[Row], model: Model, place: MegatronPlace) -> Iterator[tuple[Row, Interval]]:
    """Megatron's order of attention heads: for each query group its q heads, its k head, its v head.

    Then the whole is cut in tp equal parts. With more ranks than groups a cut falls inside a group, even inside a
    head; Megatron puts the group together again in its forward pass.
    """
    lengths = [model.shape(row)[0] // model.groups for row in rows]
    each = sum(lengths) * model.groups // place.tp
    begin, end = each * place.tp_rank, each * (place.tp_rank + 1)
    for group in range(begin // sum(lengths), -(-end // sum(lengths))):
        position = group * sum(lengths)
        for row, length in zip(rows, lengths, strict=True):
            start, stop = max(begin, position), min(end, position + length)
            if start < stop:
                shift = group * length - position
                yield row, (start + shift, stop + shift)
            position += length


def _name(row: Row, layer: int, place: MegatronPlace, expert: int = 0) -> str:
    name = (place.grouped_experts and row.grouped) or (place.transformer_engine and row.te) or row.megatron
    return f"decoder.layers.{layer}.{name}".replace("{E}", str(expert))
