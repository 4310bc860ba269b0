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
from areal_mega.resharding.layouts.assembly import Assembly, share
from areal_mega.resharding.layouts.families import SHARED_EXPERTS
from areal_mega.resharding.layouts.model import Model
from areal_mega.resharding.layouts.places import SGLangPlace
from areal_mega.resharding.layouts.table import EMBEDDING, FINAL_NORM, OUTPUT, Row, Split, hf_name

VOCABULARY_UNIT = 64
CPU_UNIT = 32  # of each rank's part of an intermediate size, where the engine runs on CPUs


def sglang_layout(hf: Any, place: SGLangPlace) -> Layout:
    """The parameters of one tensor-parallel rank of an engine.

    hf: Hugging Face config, or any object with its fields.

    Raises:
        UserError: the family is unknown, or the layout does not divide the model.
    """
    model = Model(hf)
    place.check(model)
    _check_served(hf, model, place)
    assembly = Assembly()
    _add_vocabulary(assembly, EMBEDDING, model, place)
    for layer in range(model.layers):
        _add_layer(assembly, model, layer, place)
    assembly.add(FINAL_NORM.sglang, FINAL_NORM.hf, model.shape(FINAL_NORM), (0, model.sizes["hidden"]))
    if not model.tied:  # tied: its output layer is the embedding
        _add_vocabulary(assembly, OUTPUT, model, place)
    return assembly.layout()


def _check_served(hf: Any, model: Model, place: SGLangPlace) -> None:
    """What SGLang 0.5.23 makes of such a model is another one."""
    mixture = hf.model_type in ("qwen3_moe", "mixtral")
    problems = {
        "has one shared expert, of the size of the routed ones": place.fused_shared_experts
        and model.sizes.get("shared_ffn") != model.sizes.get("expert_ffn"),
        "has experts in every layer": mixture and model.has_dense_layers,
        "has an output layer of its own (tie_word_embeddings=false)": mixture and model.tied,
        "has head_dim = hidden_size / num_attention_heads": hf.model_type == "mixtral"
        and model.head_dim * model.heads != model.sizes["hidden"],
    }
    for expected, wrong in problems.items():
        if wrong:
            fused = " with fused_shared_experts" if place.fused_shared_experts else ""
            raise UserError(f"SGLang serves a {hf.model_type} model{fused} only if it {expected}")
    if place.cpu:
        _check_cpu(model, place)


def _check_cpu(model: Model, place: SGLangPlace) -> None:
    """SGLang pads these as well, in ways that are not described here."""
    if model.uses(Split.HEADS) and (model.groups % place.tp or model.heads % place.tp):
        raise UserError(
            f"tp={place.tp} on CPUs must divide the model's num_key_value_heads={model.groups} and "
            f"num_attention_heads={model.heads}: SGLang would pad the model"
        )
    shared = model.sizes.get("shared_ffn")
    if shared and model.sizes["expert_ffn"] % (CPU_UNIT * place.tp):
        raise UserError(
            f"tp={place.tp} on CPUs: {CPU_UNIT * place.tp} must divide the model's "
            f"moe_intermediate_size={model.sizes['expert_ffn']}: SGLang would pad the shared experts"
        )


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
                _add(assembly, _name(row, layer), hf_name(row, layer), row, model, place)


def _add_experts(assembly: Assembly, model: Model, rows: Sequence[Row], layer: int, place: SGLangPlace) -> None:
    """The rank's routed experts one above the other; below them the shared one, where it is fused."""
    experts = range(*share(model.experts, place.ep, place.ep_rank))
    tensors = [[(row, hf_name(row, layer, expert)) for row in rows] for expert in experts]
    if place.fused_shared_experts:
        tensors.append([(row, hf_name(shared, layer)) for row, shared in zip(rows, SHARED_EXPERTS, strict=True)])
    for expert in tensors:
        for row, tensor in expert:
            _add_part(assembly, _name(row, layer), tensor, row, model, (place.etp, place.etp_rank), place)
    for row in rows:
        assembly.stack(_name(row, layer), len(tensors))


def _add(assembly: Assembly, parameter: str, tensor: str, row: Row, model: Model, place: SGLangPlace) -> None:
    """A tensor of a layer's dense part."""
    shape = model.shape(row)
    if row.split is Split.HEADS and shape[0] < place.tp * model.head_dim:  # each head on several ranks that follow
        heads = shape[0] // model.head_dim
        assembly.add(parameter, tensor, shape, share(shape[0], heads, place.tp_rank * heads // place.tp))
    elif row.split in (Split.OUTPUT, Split.HEADS, Split.INPUT):
        _add_part(assembly, parameter, tensor, row, model, (place.tp, place.tp_rank), place)
    else:
        assembly.add(parameter, tensor, shape, (0, shape[0]))


def _add_part(
    assembly: Assembly,
    parameter: str,
    tensor: str,
    row: Row,
    model: Model,
    part: tuple[int, int],
    place: SGLangPlace,
) -> None:
    """One of so many equal parts, (how many, which), of a tensor's output or input features.

    On CPUs SGLang pads intermediate sizes to a multiple of 32 tp; the padding is at the end of the last parts.
    """
    shape, columns = model.shape(row), row.split is Split.INPUT
    size, (parts, number) = shape[columns], part
    padded = place.cpu and "ffn" in row.shape
    unit = CPU_UNIT * place.tp if padded else parts
    each = -(-size // unit) * unit // parts
    mine = min(each * number, size), min(each * (number + 1), size)
    if columns:
        assembly.add(parameter, tensor, shape, (0, shape[0]), mine, width=each)
    else:
        assembly.add(parameter, tensor, shape, mine, padded_to=each)


def _name(row: Row, layer: int) -> str:
    return f"model.layers.{layer}.{row.sglang}"
