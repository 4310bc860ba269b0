"""AdamW in Megatron's distributed optimizer, with its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from areal_mega.config.options import OptimizerOptions
from areal_mega.policy.gpt import PackedGPT


def data_parallel(gpt: PackedGPT) -> DistributedDataParallel:
    """The model with Megatron's gradient buffers (float32), reduced over DP once, at the end of a step."""
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, check_for_nan_in_grad=True
    )
    ddp = DistributedDataParallel(gpt.config, config, gpt)
    gpt.config.no_sync_func = ddp.no_sync
    return ddp


def build_optimizer(
    ddp: DistributedDataParallel, options: OptimizerOptions, total_steps: int
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Optimizer and schedule. Step the schedule before the optimizer.

    So step s of w warm-up steps uses lr * s / w, and the last of ``total_steps`` uses the final rate.
    Weight decay reaches matrices only: the constructor of the schedule takes it off norms and biases.
    """
    dtype = ddp.module.config.params_dtype
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
    )
    optimizer = get_megatron_optimizer(config, [ddp], use_gloo_process_groups=False)
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
