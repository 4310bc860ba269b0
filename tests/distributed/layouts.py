"""The layouts that parity is measured in: one table, grouped by the number of ranks they need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from areal_mega.config.options import ParallelOptions, PolicyOptions, RecomputeOptions

DENSE = ("qwen3", "qwen2", "llama")
MIXTURES = ("qwen3_moe", "mixtral", "deepseek_v3")
DEEPSEEK = ("deepseek_v2", "deepseek_v3")


@dataclass(frozen=True)
class Layout:
    """ranks: how many it needs. families: of models it is measured with. parallel: options below policy.parallel.
    recompute: below policy.recompute."""

    ranks: int
    families: tuple[str, ...]
    parallel: dict[str, Any] = field(default_factory=dict)
    recompute: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> PolicyOptions:
        return PolicyOptions(parallel=ParallelOptions(**self.parallel), recompute=RecomputeOptions(**self.recompute))


SP = {"tensor": 2, "sequence": True}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 1000}

LAYOUTS: dict[str, Layout] = {
    "TP1": Layout(1, (*DENSE, *MIXTURES, "deepseek_v2")),
    "TP2": Layout(2, DENSE, {"tensor": 2}),
    "TP2+SP": Layout(2, ("qwen3", "qwen2", *MIXTURES), SP),
    "PP2": Layout(2, (*DENSE, *MIXTURES), {"pipeline": 2}),
    "PP2xVPP2": Layout(2, ("qwen3", "llama", "qwen3_moe", "deepseek_v3"), {"pipeline": 2, "virtual_pipeline": 2}),
    "PP2 of 3 and 1 layers": Layout(2, ("qwen3", "llama", "qwen3_moe"), {"pipeline": 2, "first_layers": 3}),
    "CP2": Layout(2, ("qwen3", "qwen2", "mixtral", *DEEPSEEK), {"context": 2}),
    "DP2": Layout(2, ("qwen3", "llama", "mixtral")),
    "DP2, overlapped": Layout(2, ("qwen3", "llama", "qwen3_moe"), OVERLAP),
    "EP2": Layout(2, MIXTURES, {"expert": 2}),
    "ETP2": Layout(2, MIXTURES, {**SP, "expert_tensor": 2}),
    "TP2+SP, full recompute": Layout(2, ("qwen3", "qwen3_moe"), SP, {"mode": "full"}),
    "PP2, recompute of 1 layer": Layout(2, ("llama",), {"pipeline": 2}, {"mode": "full", "method": "block"}),
    "EP2, selective recompute": Layout(
        2, MIXTURES, {"expert": 2}, {"mode": "selective", "modules": ["core_attn", "moe"]}
    ),
    "PP2, selective recompute": Layout(
        2, ("qwen2",), {"pipeline": 2}, {"mode": "selective", "modules": ["core_attn", "mlp"]}
    ),
    "TP4 with 2 KV heads": Layout(4, ("qwen3",), {"tensor": 4}),
    "PP4": Layout(4, ("qwen3", "llama", "deepseek_v3"), {"pipeline": 4}),
    "TP2xPP2+SP": Layout(4, ("qwen3", "llama", "qwen3_moe", "deepseek_v3"), {**SP, "pipeline": 2}),
    "TP2xPP2xVPP2+SP, full recompute": Layout(
        4, ("qwen3",), {**SP, "pipeline": 2, "virtual_pipeline": 2}, {"mode": "full"}
    ),
    "TP2xCP2": Layout(4, ("qwen3",), {"tensor": 2, "context": 2}),
    "TP2xCP2+SP": Layout(4, ("qwen3_moe", "deepseek_v3"), {**SP, "context": 2}),
    "TP2xDP2": Layout(4, ("qwen2",), {"tensor": 2}),
    "DP2xPP2": Layout(4, ("llama",), {"pipeline": 2}),
    "PP2xVPP2xDP2, overlapped": Layout(4, ("qwen3",), {"pipeline": 2, "virtual_pipeline": 2, **OVERLAP}),
    "TP2xEP2": Layout(4, MIXTURES, {**SP, "expert": 2, "expert_tensor": 1}),
    "TP2xETP2xEP2": Layout(4, ("qwen3_moe", "deepseek_v3"), {**SP, "expert": 2}),
    "EP4": Layout(4, ("qwen3_moe",), {"expert": 4}),
    "EP2xPP2": Layout(4, MIXTURES, {"expert": 2, "pipeline": 2}),
    "EP2xCP2": Layout(4, ("mixtral",), {"expert": 2, "context": 2}),
    "EP2xPP2xVPP2": Layout(4, ("qwen3_moe",), {"expert": 2, "pipeline": 2, "virtual_pipeline": 2}),
}
