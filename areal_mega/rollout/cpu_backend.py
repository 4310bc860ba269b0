"""SGLang's scheduler process on CPU, with an attention backend that suits it.

SGLang's ``torch_native`` backend handles one sequence after the other in Python. With hundreds of short
sequences in a batch, the usual case of RL on a laptop, that loop is most of the engine's time. This backend
attends for many sequences at once instead, and leaves sliding windows and cross attention to the parent.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.managers.scheduler import run_scheduler_process
from torch import Tensor

from areal_mega.config.engine import CPU_ATTENTION
from areal_mega.rollout.cpu_attention import attend


def run_scheduler(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process, with `BatchedAttention` among its attention backends."""
    register_attention_backend(CPU_ATTENTION)(BatchedAttention)
    run_scheduler_process(*args, **kwargs)


class BatchedAttention(TorchNativeAttnBackend):
    """`TorchNativeAttnBackend` without its loop over sequences."""

    def _run_sdpa_forward_decode(
        self,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        encoder_lens: Tensor | None = None,
        sliding_window_size: int | None = None,
        **options: Any,
    ) -> Tensor:
        if encoder_lens is not None or sliding_window_size is not None:
            return super()._run_sdpa_forward_decode(
                query,
                output,
                k_cache,
                v_cache,
                req_to_token,
                req_pool_indices,
                seq_lens,
                encoder_lens,
                sliding_window_size=sliding_window_size,
                **options,
            )
        rows = req_to_token[req_pool_indices]
        query_lens = torch.ones_like(seq_lens)
        return attend(query, output, k_cache, v_cache, rows, query_lens, seq_lens, options["scaling"])

    def _run_sdpa_forward_extend(
        self,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        extend_prefix_lens: Tensor,
        extend_seq_lens: Tensor,
        encoder_lens: Tensor | None = None,
        causal: bool = False,
        sliding_window_size: int | None = None,
        **options: Any,
    ) -> Tensor:
        if encoder_lens is not None or sliding_window_size is not None or not causal:
            return super()._run_sdpa_forward_extend(
                query,
                output,
                k_cache,
                v_cache,
                req_to_token,
                req_pool_indices,
                seq_lens,
                extend_prefix_lens,
                extend_seq_lens,
                encoder_lens,
                causal=causal,
                sliding_window_size=sliding_window_size,
                **options,
            )
        rows = req_to_token[req_pool_indices]
        return attend(query, output, k_cache, v_cache, rows, extend_seq_lens, seq_lens, options["scaling"])
