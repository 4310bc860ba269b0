"""Which layouts fit a model and a number of ranks: which number is wrong, and which choices would work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from areal_mega.config.options import ParallelOptions

_OPTION = "policy.parallel."
_LARGEST = 1024  # sizes that are offered as a way out

Model = Mapping[str, Any]
Rule = Callable[[Model, ParallelOptions], Iterator[str]]


def layout_problems(model: Model, parallel: ParallelOptions) -> Iterator[str]:
    """What of a model (its config.json) a layout does not divide; each sentence names what would work."""
    for name, rule in _RULES.items():
        reasons = list(rule(model, parallel))
        if reasons:
            size = getattr(parallel, name)
            way_out = _choices(name, model, parallel)
            yield f"{_OPTION}{name}={size} does not fit the model: {', '.join(reasons)}; {way_out}"
    yield from _combinations(model, parallel)


def rank_problems(parallel: ParallelOptions, ranks: int) -> Iterator[str]:
    """What is wrong with a layout on so many ranks."""
    if parallel.ranks not in (None, ranks):
        yield (
            f"{_OPTION}ranks={parallel.ranks}: the recipe is for so many GPUs, and these are {ranks}; start it on "
            f"{parallel.ranks}, or set {_OPTION}ranks=null and check the rest of the layout."
        )
    dense = {"tensor": parallel.tensor, "context": parallel.context, "pipeline": parallel.pipeline}
    expert_tensor = parallel.expert_tensor or parallel.tensor
    experts = {"expert": parallel.expert, "expert_tensor": expert_tensor, "pipeline": parallel.pipeline}
    for sizes in (dense, experts if parallel.expert > 1 or parallel.expert_tensor else {}):
        product = 1
        for size in sizes.values():
            product *= size
        if ranks % product:
            named = " * ".join(f"{_OPTION}{n}={s}" for n, s in sizes.items() if s > 1)
            yield (
                f"{named} = {product} must divide the number of ranks, {ranks}; start with torchrun "
                f"--nproc-per-node {product}, or a multiple, or choose a smaller layout."
            )


def experts_of(model: Model) -> int:
    """Routed experts of each MoE layer; 0: the model is dense."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((model[name] for name in names if model.get(name)), 0)


def _is_latent(model: Model) -> bool:
    return bool(model.get("kv_lora_rank"))


def _indivisible(model: Model, names: tuple[str, ...], divisor: int) -> Iterator[str]:
    for name in names:
        if (model.get(name) or 0) % divisor:
            yield f"{name}={model[name]} is not a multiple of {divisor}"


def _tensor(model: Model, p: ParallelOptions) -> Iterator[str]:
    yield from _indivisible(model, ("num_attention_heads",), p.tensor)
    groups = 0 if _is_latent(model) else model.get("num_key_value_heads") or 0
    if groups and groups % p.tensor and p.tensor % groups:
        yield f"num_key_value_heads={groups} neither is a multiple of {p.tensor} nor divides it"
    if model.get("model_type") != "mixtral":  # its intermediate_size is the experts'
        yield from _indivisible(model, ("intermediate_size",), p.tensor)
    if p.expert_tensor is None and experts_of(model):
        yield from _experts_width(model, p.tensor)
    shared = (model.get("n_shared_experts") or 0) * (model.get("moe_intermediate_size") or 0)
    if shared % p.tensor:
        yield f"n_shared_experts * moe_intermediate_size = {shared} is not a multiple of {p.tensor}"


def stage_layers(total: int, stages: int, first: int | None, last: int | None) -> list[int]:
    """Layers of each pipeline stage: of the first and the last as given, of the others as many as they have alike.

    They make up ``total`` where it can be divided so.
    """
    given = {stage: layers for stage, layers in ((0, first), (stages - 1, last)) if layers is not None}
    between = stages - len(given)
    each = (total - sum(given.values())) // between if between else 0
    return [given.get(stage, each) for stage in range(stages)]


def _stages(model: Model, p: ParallelOptions) -> list[int]:
    return stage_layers(model.get("num_hidden_layers") or 0, p.pipeline, p.first_layers, p.last_layers)


def _pipeline(model: Model, p: ParallelOptions) -> Iterator[str]:
    if p.pipeline == 1 or (p.first_layers is None and p.last_layers is None):
        yield from _indivisible(model, ("num_hidden_layers",), p.pipeline)
        return
    stages, total = _stages(model, p), model.get("num_hidden_layers")
    if sum(stages) != total or min(stages) < 1:
        made = " + ".join(map(str, stages))
        yield (
            f"with first_layers={p.first_layers} and last_layers={p.last_layers} its stages have {made} layers, not "
            f"the num_hidden_layers={total} of the model"
        )


def _virtual_pipeline(model: Model, p: ParallelOptions) -> Iterator[str]:
    for layers in sorted(set(_stages(model, p))):
        if layers % p.virtual_pipeline:
            yield f"a stage of {layers} layers cannot be cut into {p.virtual_pipeline} chunks"


def _expert(model: Model, p: ParallelOptions) -> Iterator[str]:
    experts = experts_of(model)
    if p.expert > 1 and not experts:
        yield "it has no experts"
    elif experts % p.expert:
        yield f"its {experts} experts are not a multiple of {p.expert}"


def _expert_tensor(model: Model, p: ParallelOptions) -> Iterator[str]:
    if p.expert_tensor is None:
        return
    if p.expert_tensor > 1 and not experts_of(model):
        yield "it has no experts"
    else:
        yield from _experts_width(model, p.expert_tensor)


def _experts_width(model: Model, divisor: int) -> Iterator[str]:
    name = "intermediate_size" if model.get("model_type") == "mixtral" else "moe_intermediate_size"
    yield from _indivisible(model, (name,), divisor)


_RULES: dict[str, Rule] = {
    "tensor": _tensor,
    "pipeline": _pipeline,
    "virtual_pipeline": _virtual_pipeline,
    "expert": _expert,
    "expert_tensor": _expert_tensor,
}


def _choices(name: str, model: Model, parallel: ParallelOptions) -> str:
    """The sizes of one direction that would work, the others being what they are."""
    fits = [
        size
        for size in range(1, _LARGEST + 1)
        if not list(_RULES[name](model, dataclasses.replace(parallel, **{name: size})))  # type: ignore[arg-type]
        and size <= max(experts_of(model), model.get("num_attention_heads") or 1, model.get("num_hidden_layers") or 1)
    ]
    return f"use {', '.join(map(str, fits))}"


def _combinations(model: Model, p: ParallelOptions) -> Iterator[str]:
    if p.virtual_pipeline > 1 and p.pipeline == 1:
        yield (
            f"{_OPTION}virtual_pipeline={p.virtual_pipeline} interleaves the chunks of pipeline stages, but "
            f"{_OPTION}pipeline=1; set it above 1, or virtual_pipeline=1"
        )
    if p.pipeline == 1 and (p.first_layers is not None or p.last_layers is not None):
        yield f"{_OPTION}first_layers and last_layers are of pipeline stages, but {_OPTION}pipeline=1; set them to null"
    if p.sequence and p.tensor == 1:
        yield f"{_OPTION}sequence=true cuts over tensor-parallel ranks, but {_OPTION}tensor=1; set sequence=false"
    if p.tensor > 1 and not p.sequence and (experts_of(model) or _is_latent(model)):
        kind = "latent attention" if _is_latent(model) else "mixture-of-experts"
        yield f"{_OPTION}tensor={p.tensor} of a {kind} model needs {_OPTION}sequence=true"
    tensor, experts_tensor = p.tensor, p.expert_tensor or p.tensor
    if experts_of(model) and p.expert == 1 and experts_tensor != tensor:
        # Megatron takes the experts for dense layers then, and does not add up their gradients over the right ranks.
        yield (
            f"{_OPTION}expert_tensor={experts_tensor} must be {_OPTION}tensor={tensor} where {_OPTION}expert=1; set it "
            "to null, or expert above 1"
        )
    if p.overlap_param_gather and not p.overlap_grad_reduce:
        yield f"{_OPTION}overlap_param_gather=true needs {_OPTION}overlap_grad_reduce=true"
