"""SGLang's scheduler process on CPU, with an attention backend that suits it, and with expert parallelism.

SGLang's ``torch_native`` backend handles one sequence after the other in Python. With hundreds of short
sequences in a batch, the usual case of RL on a laptop, that loop is most of the engine's time. This backend
attends for many sequences at once instead, and leaves sliding windows and cross attention to the parent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.moe import fused_moe_native
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.mem_cache.pool_host.common import ALLOC_MEMORY_FUNCS
from torch import Tensor

from areal_mega.config.engine import CPU_ATTENTION
from areal_mega.rollout.cpu_attention import attend


def run_scheduler(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process, with `BatchedAttention` among its attention backends, and `with_local_experts`.

    What SGLang 0.5.23 keeps in host memory beside a GPU, such as the experts it chose, it registers with CUDA, which is
    not there: here it is plain memory.
    """
    register_attention_backend(CPU_ATTENTION)(BatchedAttention)
    ALLOC_MEMORY_FUNCS["cpu"] = _plain_memory
    fused_moe_native.moe_forward_native = with_local_experts(fused_moe_native.moe_forward_native)
    run_scheduler_process(*args, **kwargs)


def _plain_memory(dims: tuple[int, ...], dtype: torch.dtype, **_: Any) -> Tensor:
    return torch.empty(dims, dtype=dtype)


def with_local_experts(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """SGLang's plain MoE layer, for ranks that hold a part of the experts (EP).

    Under EP the experts of other ranks have the number -1, which the layer of SGLang 0.5.23 takes for an index. Here it
    gets only the choices that fall on this rank, each as a token of its own; the ranks' outputs are summed.
    """

    def forward_local(layer: torch.nn.Module, x: Tensor, topk: StandardTopKOutput, config: Any) -> Tensor:
        if layer.moe_ep_size == 1:
            return forward(layer, x, topk, config)
        token, choice = (topk.topk_ids >= 0).nonzero(as_tuple=True)
        output = torch.zeros_like(x)
        if len(token):
            ids, weights = (chosen[token, choice][:, None] for chosen in (topk.topk_ids, topk.topk_weights))
            part = forward(layer, x[token], topk._replace(topk_ids=ids, topk_weights=weights), config)
            output.index_add_(0, token, part.to(x.dtype))
        return output

    return forward_local


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
