"""Model, Megatron layout, optimizer, critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from areal_mega.config.options.fields import group, option


@dataclass
class ModelOptions:
    path: str = option(MISSING, "Hugging Face folder: config.json, tokenizer, *.safetensors.")
    dtype: str = option(
        "float32",
        "Parameter type in training and generation.",
        choices=("float32", "bfloat16"),
    )


@dataclass
class OptimizerOptions:
    lr: float = option(1e-5, "Peak learning rate.", minimum=0)
    min_lr_ratio: float = option(1.0, "Final learning rate as a fraction of lr.", minimum=0, maximum=1)
    schedule: str = option(
        "constant",
        "Decay after warm-up.",
        choices=("constant", "linear", "cosine"),
    )
    warmup_steps: int = option(0, "Optimizer steps of linear warm-up from 0 to lr.", minimum=0)
    weight_decay: float = option(0.0, "AdamW weight decay; never applied to norms and biases.", minimum=0)
    beta1: float = option(0.9, "Adam beta_1.", minimum=0, below=1)
    beta2: float = option(0.95, "Adam beta_2.", minimum=0, below=1)
    eps: float = option(1e-8, "Adam epsilon.", above=0)
    clip_grad: float = option(1.0, "Largest global gradient norm; 0 switches clipping off.", minimum=0)


@dataclass
class ParallelOptions:
    tensor: int = option(1, "Tensor-parallel size (TP).", minimum=1)
    pipeline: int = option(
        1, "Pipeline-parallel size (PP). The data-parallel size DP is ranks / (TP * PP * CP).", minimum=1
    )
    virtual_pipeline: int = option(1, "Model chunks of each pipeline stage (VPP); above 1 interleaves them.", minimum=1)
    context: int = option(1, "Context-parallel size (CP): cuts every sequence.", minimum=1)
    expert: int = option(1, "Expert-parallel size (EP), over ranks of DP, CP and TP.", minimum=1)
    expert_tensor: int | None = option(
        None, "Tensor-parallel size of the experts (ETP); null: tensor. 1 is mostly best.", minimum=1
    )
    sequence: bool = option(
        False, "Cut activations between layers over TP; MoE and DeepSeek models with tensor above 1 need it."
    )
    overlap_grad_reduce: bool = option(False, "Reduce gradients over DP while backward still runs, in buckets.")
    overlap_param_gather: bool = option(
        False, "Gather updated weights over DP while the next forward runs; needs overlap_grad_reduce."
    )
    bucket_size: int = option(40_000_000, "Parameters in a bucket, with overlap.", minimum=1)
    ranks: int | None = option(
        None, "GPUs that the layout is for, and the only number it may be started on; null: any.", minimum=1
    )
    first_layers: int | None = option(
        None, "Layers of the first pipeline stage; null: as many as of those between.", minimum=1
    )
    last_layers: int | None = option(
        None, "Layers of the last pipeline stage; null: as many as of those between.", minimum=1
    )


@dataclass
class RecomputeOptions:
    mode: str = option(
        "none",
        "Compute activations again in backward, for memory. full: whole layers. selective: the parts in modules.",
        choices=("none", "selective", "full"),
    )
    modules: list[str] = option(
        ["core_attn"], "selective: of core_attn, mlp, moe, shared_experts, moe_act, mla_up_proj, layernorm."
    )
    method: str = option(
        "uniform",
        "full: uniform keeps the input of every so many layers, block recomputes so many layers of a stage.",
        choices=("uniform", "block"),
    )
    layers: int = option(1, "full: how many layers.", minimum=1)


@dataclass
class OffloadOptions:
    optimizer: bool = option(False, "Keep the optimizer's states in host memory, but for the moment of its step.")
    reference: bool = option(False, "Keep the reference model's weights in host memory while it does not compute.")


@dataclass
class MoEOptions:
    balance_coef: float = option(
        0.0, "Weight of the load-balance loss of the routers, E * sum_e f_e P_e on average over tokens.", minimum=0
    )
    bias_update_rate: float = option(
        0.0, "Step of DeepSeek-V3's expert bias towards balance after every optimizer step; 0 leaves it.", minimum=0
    )
    replay: bool = option(False, "Train with the experts that the engine chose for each token (router replay).")


@dataclass
class PolicyOptions:
    parallel: ParallelOptions = group(ParallelOptions, "Megatron layout of policy, critic and reference.")
    optimizer: OptimizerOptions = group(OptimizerOptions, "The policy's optimizer.")
    max_tokens_per_micro_batch: int = option(
        8192, "Token budget of one micro-batch; a longer single sequence is an error.", minimum=1
    )
    logprob_workspace_mb: int = option(
        0, "MiB of logits that exist at the same time in the log-prob head; 0: 16 on a CPU, 1024 on a GPU.", minimum=0
    )
    recompute: RecomputeOptions = group(RecomputeOptions, "Memory for time.")
    offload: OffloadOptions = group(OffloadOptions, "GPU memory for host memory.")
    moe: MoEOptions = group(MoEOptions, "Mixture of experts.")
    megatron: dict[str, Any] = option({}, "Fields of Megatron's TransformerConfig, passed on as they are.")


@dataclass
class CriticOptions:
    path: str | None = option(None, "Hugging Face folder the critic's body starts from; null: model.path.")
    optimizer: OptimizerOptions = group(OptimizerOptions, "The critic's optimizer.")
    warmup_steps: int = option(0, "First steps in which only the critic is trained.", minimum=0)
