"""A run on paper: all checks, the layout of every rank, and what each would hold and send. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from areal_mega.config.checks import check
from areal_mega.config.divisibility import layout_problems
from areal_mega.config.dtypes import DTYPES
from areal_mega.config.errors import UserError
from areal_mega.config.options import CommonOptions, DPOOptions, PPOOptions, PreferenceOptions, SupervisedOptions
from areal_mega.resharding.deployment import Deployment, deploy
from areal_mega.resharding.known_models import KNOWN_MODELS, known_model, known_name
from areal_mega.resharding.layouts import MegatronGrid, MegatronPlace, SGLangGrid, megatron_layout
from areal_mega.rollout.arguments import GPU_MEMORY_FRACTION
from areal_mega.trainers.memory import activation_bytes, model_bytes, parameter_counts, workspace_bytes

GPUS_PER_MACHINE = 8
GPU_GB = 80  # of which engines take their part
GB = 1e9


def show(options: CommonOptions) -> None:
    """Print the plan of a recipe.

    Raises:
        UserError: the options contradict each other or the model, or name no model of known sizes.
    """
    ranks = options.policy.parallel.ranks
    if ranks is None:
        raise UserError("dry_run=true plans for policy.parallel.ranks GPUs, which is null; set it.")
    hf = model_config(options.model.path)
    check(options, ranks, cuda=True)
    if problems := list(layout_problems(vars(hf), options.policy.parallel)):
        raise UserError("The layout does not fit the model:\n" + "\n".join(f"  - {problem}" for problem in problems))
    grid = training_grid(options, ranks)
    console = Console(soft_wrap=True, highlight=False)
    console.print(headline(options, hf, grid))
    console.print(memory_table(options, hf, grid))
    for line in batch_lines(options, grid):
        console.print(line)
    if isinstance(options, PPOOptions):
        for line in reshard_lines(options, deployment(options, hf, grid)):
            console.print(line)


def model_config(path: str, option: str = "model.path") -> Any:
    """The Hugging Face config of a folder, or that of the known model that the path's last part names."""
    if Path(path).is_dir():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(path)
    name = known_name(path)
    if name is None:
        raise UserError(
            f"{option}={path}: no such folder, and its last part is not the name of a model whose sizes are known; "
            f"name one of {', '.join(KNOWN_MODELS)}, or a folder."
        )
    return known_model(name)


def training_grid(options: CommonOptions, ranks: int) -> MegatronGrid:
    """All training ranks."""
    p = options.policy.parallel
    return MegatronGrid(
        tp=p.tensor,
        pp=p.pipeline,
        cp=p.context,
        dp=ranks // (p.tensor * p.pipeline * p.context),
        ep=p.expert,
        etp=p.expert_tensor or p.tensor,
        vpp=p.virtual_pipeline,
        first_layers=p.first_layers,
        last_layers=p.last_layers,
    )


def deployment(options: PPOOptions, hf: Any, grid: MegatronGrid) -> Deployment:
    """Where weights are and go. Raises a UserError if the engines' layout does not divide the model or the machines."""
    engines = SGLangGrid(tp=options.rollout.tensor, ep=options.rollout.expert, count=options.rollout.engines)
    per_node = min(GPUS_PER_MACHINE, grid.world)
    return deploy(hf, grid.places(), engines, colocated=_colocated(options), per_node=per_node)


def _colocated(options: PPOOptions) -> bool:
    return options.resharding.transport == "colocated"


def headline(options: CommonOptions, hf: Any, grid: MegatronGrid) -> str:
    """The recipe, its model and its layout."""
    sizes = {"DP": grid.dp, "TP": grid.tp, "PP": grid.pp, "VPP": grid.vpp, "CP": grid.cp, "EP": grid.ep}
    shown = " * ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    replica = {place: megatron_layout(hf, place) for place in dict.fromkeys(grid.places())}
    total = sum(sum(parameter_counts(layout)) for layout in replica.values())
    return (
        f"{options.experiment}: {options.description}\n"
        f"{options.model.path}: {total / 1e9:.1f} billion parameters in all different shards, {options.model.dtype}\n"
        f"{grid.world} ranks: {shown or 'one'}; nothing was started, no data was read"
    )


def rank_parts(options: CommonOptions, hf: Any, grid: MegatronGrid, stage: int) -> dict[str, float]:
    """Bytes by part, of the rank of a pipeline stage that holds most, while it trains; on its device."""
    size = DTYPES[options.model.dtype].itemsize
    places = [place for place in dict.fromkeys(grid.places()) if place.pp_rank == stage]
    layouts = {place: megatron_layout(hf, place) for place in places}
    most = max(places, key=lambda place: sum(parameter_counts(layouts[place])))
    parts = model_bytes(layouts[most], options, grid.world)
    if options.policy.offload.optimizer:
        parts["optimizer states"] = 0.0
    if isinstance(options, PPOOptions):
        if options.algorithm.use_reference:
            parts |= _reference(options, options.algorithm.reference_path, parts["parameters"], most)
        if options.algorithm.has_critic:
            body = model_config(options.critic.path) if options.critic.path else hf
            critic = model_bytes(megatron_layout(body, most, critic=True), options, grid.world)
            parts["critic"] = sum(v for k, v in critic.items() if parts[k])
    if isinstance(options, DPOOptions):
        parts |= _reference(options, options.reference_path, parts["parameters"], most)
    parts["activations"] = activation_bytes(hf, options.policy, stage, size)
    parts["logits"] = workspace_bytes(options.policy) if stage == grid.pp - 1 else 0.0
    if isinstance(options, PPOOptions) and _colocated(options):
        fraction = options.rollout.sglang.get("mem_fraction_static", GPU_MEMORY_FRACTION)
        parts["engine"] = fraction * GPU_GB * GB
        parts["weight buffer"] = options.resharding.buffer_mb << 20
    return parts


def _reference(options: CommonOptions, path: str | None, parameters: float, place: MegatronPlace) -> dict[str, float]:
    """A frozen model on the device. path: of its own folder; None: it is the policy's."""
    if options.policy.offload.reference:
        return {}
    if path:
        counts = parameter_counts(megatron_layout(model_config(path, "reference_path"), place))
        parameters = float(sum(counts)) * DTYPES[options.model.dtype].itemsize
    return {"reference": parameters}


def memory_table(options: CommonOptions, hf: Any, grid: MegatronGrid) -> Table:
    """GB by part and pipeline stage."""
    stages: list[Mapping[str, float]] = [rank_parts(options, hf, grid, stage) for stage in range(grid.pp)]
    shown = Table(title="GB on the fullest rank of each pipeline stage", title_justify="left")
    shown.add_column("part")
    for stage in range(grid.pp):
        shown.add_column(f"stage {stage}", justify="right")
    for part in stages[0]:
        shown.add_row(part, *(f"{parts[part] / GB:.2f}" for parts in stages), end_section=part == "weight buffer")
    shown.add_row("total", *(f"{sum(parts.values()) / GB:.2f}" for parts in stages))
    engine = (
        f"; engine: rollout.sglang.mem_fraction_static of {GPU_GB} GB, weights and KV cache together"
        if isinstance(options, PPOOptions) and _colocated(options)
        else ""
    )
    shown.caption = f"activations: estimated for full micro-batches (docs/recipes.md){engine}"
    shown.caption_justify = "left"
    return shown


def batch_lines(options: CommonOptions, grid: MegatronGrid) -> list[str]:
    """How a step is cut up."""
    budget = options.policy.max_tokens_per_micro_batch
    if isinstance(options, PPOOptions):
        count = options.algorithm.mini_batches
        sequences = options.samples_per_step // (grid.dp * count)
        longest = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
        head = f"a step: {options.samples_per_step} samples in {count} mini-batch{'es' * (count > 1)}"
    else:
        assert isinstance(options, SupervisedOptions)
        sequences, longest = options.items_per_step // grid.dp, options.longest_item
        what = "pairs" if isinstance(options, PreferenceOptions) else "sequences"
        head = f"a step: {options.items_per_step} {what}"
    most = -(-sequences // max(1, budget // longest))
    idle = (grid.pp - 1) / (most * grid.vpp + grid.pp - 1)
    return [
        f"{head}; of each a replica has {sequences}, which take up to {most} micro-batches of {budget} tokens (if all "
        f"have {longest}); the pipeline then idles {idle:.1%} of the time"
    ]


def reshard_lines(options: PPOOptions, made: Deployment) -> list[str]:
    """New weights for the engines, each step."""
    size = DTYPES[options.model.dtype].itemsize
    found = made.plan().statistics
    sent = found if _colocated(options) else made.one_engine.plan().statistics  # the engines pass it on
    bound = made.lower_bound(lambda _: size)
    return [
        f"new weights: {options.rollout.engines} engines of TP {options.rollout.tensor} need "
        f"{found.needed * size / GB:.1f} GB, {made.largest * size / GB:.1f} GB on each rank; "
        f"{found.local_fraction:.1%} is on their devices already",
        f"  moved between devices {found.moved * size / GB:.1f} GB (lower bound {bound / GB:.1f}), into one device at "
        f"most {found.max_in * size / GB:.2f} GB, out of one trainer's at most {sent.max_out * size / GB:.2f} GB, "
        f"{sent.messages} messages",
    ]
