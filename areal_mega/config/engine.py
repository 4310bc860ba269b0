"""What this package knows of SGLang's arguments, and which of them ``rollout.sglang`` may set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from areal_mega.config.options import (
    EvaluateOptions,
    PPOOptions,
    RejectionOptions,
    ReshardingOptions,
    RolloutOptions,
)

# SGLang cuts responses two tokens before the end of the context and refuses prompts six before it.
RESERVED_TOKENS = 6

# This package's own attention backend for CPUs, by the name it has in SGLang.
CPU_ATTENTION = "torch_batched"

# ServerArgs that follow from other options: name to that option (None: the program's own business).
OWN_ARGUMENTS: dict[str, str | None] = {
    "model_path": "model.path",
    "dtype": "model.dtype",
    "random_seed": "seed",
    "device": "runtime.device",
    "tp_size": "rollout.tensor",
    "ep_size": "rollout.expert",
    "custom_weight_loader": None,
    "port": "rollout.port",
    "host": None,
    "api_key": None,
    "admin_api_key": None,
    "weight_version": None,
    "skip_tokenizer_init": None,
}

# ServerArgs that need a GPU: name to the values that run on a CPU, the default first.
CPU_VALUES: dict[str, tuple[Any, ...]] = {
    "attention_backend": (CPU_ATTENTION, "torch_native", "intel_amx"),
    "sampling_backend": ("pytorch",),
    "quantization": (None,),
    "enable_memory_saver": (False,),
    "enable_deterministic_inference": (False,),
    "kv_cache_dtype": ("auto",),
}


def context_length(options: RolloutOptions) -> int:
    """The context the engine needs: the longest sample, and what SGLang keeps back of every context."""
    return options.max_prompt_tokens + options.max_new_tokens + RESERVED_TOKENS


def engine_problems(options: PPOOptions | RejectionOptions | EvaluateOptions, ranks: int, device: str) -> Iterator[str]:
    """What is wrong with the engine's options, in sentences. device: ``cpu`` or ``cuda``."""
    rollout = options.rollout
    if isinstance(options, EvaluateOptions):
        shared, place = True, "there are no more GPUs here. Lower one of them."
    elif isinstance(options, RejectionOptions):
        shared, place = True, "the engines live on the trainers' devices. Lower one of them, or start more ranks."
    else:
        shared = options.resharding.transport == "colocated"
        place = (
            "the engines live on the trainers' devices. Lower one of them, start more ranks, or set "
            "resharding.transport=disaggregated."
        )
    if shared and rollout.engines * rollout.tensor > ranks:
        yield (
            f"rollout.engines={rollout.engines} of rollout.tensor={rollout.tensor} need more than the {ranks} rank(s) "
            f"of this run; {place}"
        )
    if isinstance(options, PPOOptions):
        yield from _resharding(options.resharding)
    if rollout.tensor % rollout.expert:
        yield f"rollout.expert={rollout.expert} must divide rollout.tensor={rollout.tensor}."
    if rollout.engines > 1 and rollout.port:
        yield f"rollout.port={rollout.port} is one port, and rollout.engines={rollout.engines}; leave it out."
    for name, own in OWN_ARGUMENTS.items():
        if name in rollout.sglang:
            way_out = f"use {own}" if own else "the program sets it; leave it out"
            yield f"rollout.sglang.{name} cannot be set here: {way_out}."
    if device == "cpu":
        yield from _gpu_only(rollout.sglang)
    yield from _context(rollout)


def _resharding(options: ReshardingOptions) -> Iterator[str]:
    if options.delta and options.transport == "colocated":
        yield (
            "resharding.delta=true saves nothing with resharding.transport=colocated, where weights are copied in "
            "memory; set it to false, or use resharding.transport=disaggregated or disk."
        )
    if options.folder is None:
        return
    if options.transport != "disk":
        yield (
            f"resharding.folder={options.folder} is for resharding.transport=disk, and that is {options.transport}; "
            "leave one of them out."
        )
    elif not Path(options.folder).is_dir():
        yield (
            f"resharding.folder={options.folder} is no folder; name one on a file system that trainers and engines "
            "share, or null for the run directory."
        )


def _gpu_only(arguments: dict[str, Any]) -> Iterator[str]:
    for name, allowed in CPU_VALUES.items():
        value = arguments.get(name, allowed[0])
        if value not in allowed:
            way_out = ", ".join(str(v).lower() for v in allowed)
            yield f"rollout.sglang.{name}={value} needs a GPU; on a CPU use {way_out}, or leave it out."


def _context(options: RolloutOptions) -> Iterator[str]:
    context, needed = options.sglang.get("context_length"), context_length(options)
    if context is not None and context < needed:
        yield (
            f"rollout.sglang.context_length={context} is too short: rollout.max_prompt_tokens + "
            f"rollout.max_new_tokens and the {RESERVED_TOKENS} tokens that SGLang keeps back make {needed}; raise it "
            "to that or leave it out."
        )
