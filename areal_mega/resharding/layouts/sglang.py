"""What an SGLang rank holds (SGLang 0.5.23, weights as they are after its ``load_weights``).

Kernels that keep weights in another order than that (fp8 blocks, Marlin, AITER) are not described. Of MLA's kv_b_proj
SGLang also derives w_kc and w_vc, which are not parameters: its ``post_load_weights`` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.resharding.coordinates import Layout
from areal_mega.resharding.layouts.assembly import Assembly, Interval, share
from areal_mega.resharding.layouts.families import SHARED_EXPERTS
from areal_mega.resharding.layouts.model import Model
from areal_mega.resharding.layouts.places import SGLangPlace
from areal_mega.resharding.layouts.table import EMBEDDING, FINAL_NORM, OUTPUT, Row, Split, hf_name

VOCABULARY_UNIT = 64


def sglang_layout(hf: Any, place: SGLangPlace) -> Layout:
    """The parameters of one tensor-parallel rank of an engine.

    hf: Hugging Face config, or any object with its fields.

    Raises:
        UserError: the family is unknown, or the layout does not divide the model.
    """
    model = Model(hf)
    place.check(model)
    if place.fused_shared_experts and model.sizes.get("shared_ffn") != model.sizes.get("expert_ffn"):
        raise UserError("fused_shared_experts needs a model with one shared expert, of the size of the routed ones")
    assembly = Assembly()
    _add_vocabulary(assembly, EMBEDDING, model, place)
    for layer in range(model.layers):
        _add_layer(assembly, model, layer, place)
    assembly.add(FINAL_NORM.sglang, FINAL_NORM.hf, model.shape(FINAL_NORM), (0, model.sizes["hidden"]))
    if not model.tied:  # tied: its output layer is the embedding
        _add_vocabulary(assembly, OUTPUT, model, place)
    return assembly.layout()


def _add_vocabulary(assembly: Assembly, row: Row, model: Model, place: SGLangPlace) -> None:
    """Padded to a multiple of 64, and where tp does not divide that, of 64 tp; the padding is at the end."""
    shape = model.shape(row)
    unit = VOCABULARY_UNIT
    if -(-shape[0] // unit) * unit % place.tp:
        unit *= place.tp
    each = -(-shape[0] // unit) * unit // place.tp
    start, stop = (min(each * rank, shape[0]) for rank in (place.tp_rank, place.tp_rank + 1))
    assembly.add(row.sglang, row.hf, shape, (start, stop), padded_to=each)


def _add_layer(assembly: Assembly, model: Model, layer: int, place: SGLangPlace) -> None:
    for is_expert, rows in groupby(model.layer(layer), key=lambda row: row.is_expert):
        if is_expert:
            _add_experts(assembly, model, list(rows), layer, place)
            continue
        for row in rows:
            if not (place.fused_shared_experts and row in SHARED_EXPERTS):
                shape = model.shape(row)
                parts = _parts(row.split, shape, model, place)
                assembly.add(_name(row, layer), hf_name(row, layer), shape, *parts)


def _add_experts(assembly: Assembly, model: Model, rows: Sequence[Row], layer: int, place: SGLangPlace) -> None:
    """The rank's routed experts one above the other; below them the shared one, where it is fused."""
    experts = range(*share(model.experts, place.ep, place.ep_rank))
    tensors = [[(row, hf_name(row, layer, expert)) for row in rows] for expert in experts]
    if place.fused_shared_experts:
        tensors.append([(row, hf_name(shared, layer)) for row, shared in zip(rows, SHARED_EXPERTS, strict=True)])
    for expert in tensors:
        for row, tensor in expert:
            shape = model.shape(row)
            part = share(shape[row.split is Split.INPUT], place.etp, place.etp_rank)
            parts = ((0, shape[0]), part) if row.split is Split.INPUT else (part, None)
            assembly.add(_name(row, layer), tensor, shape, *parts)
    for row in rows:
        assembly.stack(_name(row, layer), len(tensors))


def _parts(split: Split, shape: tuple[int, ...], model: Model, place: SGLangPlace) -> tuple[Interval, Interval | None]:
    """Rows and columns of a tensor that are on this rank."""
    if split is Split.HEADS and shape[0] < place.tp * model.head_dim:  # each head on several ranks that follow
        heads = shape[0] // model.head_dim
        return share(shape[0], heads, place.tp_rank * heads // place.tp), None
    if split in (Split.OUTPUT, Split.HEADS):
        return share(shape[0], place.tp, place.tp_rank), None
    return (0, shape[0]), share(shape[1], place.tp, place.tp_rank) if split is Split.INPUT else None


def _name(row: Row, layer: int) -> str:
    return f"model.layers.{layer}.{row.sglang}"
