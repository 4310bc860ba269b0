"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) on Megatron's, for packed sequences."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig, multi_latent_attention
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor

from areal_mega.runtime import extensions

# megatron-core 0.16.1 takes its own stand-ins for TransformerEngine for the package itself.
multi_latent_attention.HAVE_TE = extensions.installed("transformer_engine")


class PackedLatentAttention(MLASelfAttention):
    """The down projections are small and whole on every TP rank, as TransformerEngine's are.

    Megatron's own layers without it would cut them over TP, and lose the gradient that the rotated part of the keys
    gets from the other ranks' heads.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.q_lora_rank is not None:
            self.linear_q_down_proj = ReplicatedLinear(config, config.q_lora_rank)
        self.linear_kv_down_proj = ReplicatedLinear(config, config.kv_lora_rank + config.qk_pos_emb_head_dim)


class ReplicatedLinear(torch.nn.Module):
    """A linear layer that all TP ranks have; each applies it to its own tokens under sequence parallel."""

    def __init__(self, config: TransformerConfig, out_features: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(out_features, config.hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        """``[..., H]`` → ``[..., out_features]``, and no bias."""
        return torch.nn.functional.linear(hidden, self.weight), None
