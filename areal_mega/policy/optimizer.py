"""AdamW in Megatron's distributed optimizer, with its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from areal_mega.config.options import OptimizerOptions, ParallelOptions
from areal_mega.policy.gpt import PackedGPT


def data_parallel(chunks: Sequence[PackedGPT], options: ParallelOptions) -> list[DistributedDataParallel]:
    """The model chunks with Megatron's gradient buffers (float32), reduced over DP.

    Once at the end of a step, or with overlap in buckets, each as soon as its gradients are complete.
    """
    config = chunks[0].config
    # One config for each chunk: Megatron writes into it.
    wrapped = [
        DistributedDataParallel(
            config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=True,
                check_for_nan_in_grad=True,
                overlap_grad_reduce=options.overlap_grad_reduce,
                overlap_param_gather=options.overlap_param_gather,
                bucket_size=options.bucket_size if options.overlap_grad_reduce else None,
            ),
            chunk,
        )
        for chunk in chunks
    ]
    config.no_sync_func = _one_or_list([chunk.no_sync for chunk in wrapped])
    if options.overlap_grad_reduce and len(wrapped) > 1:
        config.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    return wrapped


def build_optimizer(
    chunks: Sequence[DistributedDataParallel], options: OptimizerOptions, total_steps: int
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Optimizer and schedule. Step the schedule before the optimizer.

    So step s of w warm-up steps uses lr * s / w, and the last of ``total_steps`` uses the final rate.
    Weight decay reaches matrices only: the constructor of the schedule takes it off norms and biases.
    """
    ddp_config, dtype = chunks[0].ddp_config, chunks[0].module.config.params_dtype
    config = OptimizerConfig(
        lr=options.lr,
        min_lr=options.lr * options.min_lr_ratio,
        weight_decay=options.weight_decay,
        adam_beta1=options.beta1,
        adam_beta2=options.beta2,
        adam_eps=options.eps,
        clip_grad=options.clip_grad,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_distributed_optimizer=True,
        overlap_param_gather=ddp_config.overlap_param_gather,
    )
    optimizer = get_megatron_optimizer(config, list(chunks), use_gloo_process_groups=False)
    schedule = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=options.lr,
        min_lr=options.lr * options.min_lr_ratio,
        lr_warmup_steps=options.warmup_steps,
        lr_decay_steps=max(total_steps, options.warmup_steps + 1),
        lr_decay_style=options.schedule,
        start_wd=options.weight_decay,
        end_wd=options.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    return optimizer, schedule


def learning_rate(optimizer: MegatronOptimizer) -> float:
    return next((group["lr"] for group in optimizer.param_groups), math.nan)


def _one_or_list(functions: list) -> object:
    return functions[0] if len(functions) == 1 else functions
