"""Generalised advantage estimation on packed sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from areal_mega.ops import native
from areal_mega.ops.backend import choose, compiled_module
from areal_mega.ops.checks import check_bounds, check_cu_seqlens, check_like
from areal_mega.ops.reference.gae import gae as reference_gae


def gae(
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float | Tensor,
    loss_mask: Tensor | None = None,
    bootstrap: Tensor | None = None,
    critic_lam: float | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of B packed sequences (Schulman et al., 2016, arXiv:1506.02438, eq. 16).

    With t' the next token of the same sequence whose ``loss_mask`` is True::

        delta[t] = rewards[t] + gamma * values[t'] - values[t]
        A[t] = delta[t] + gamma * lam * A[t']
        returns[t] = A[t] + values[t]

    Masked tokens (prompts, tool outputs) are stepped over: what they hold is never read, not even NaN, and
    they get 0. After the last valid token ``values[t']`` is the sequence's bootstrap and ``A[t']`` is 0. A
    NaN or infinity never reaches another sequence.

    rewards: ``[N]`` float32 or float64. values: ``[N]``, the critic's estimate before each token.
    cu_seqlens: ``[B + 1]`` int32 or int64, from 0 to N. gamma, lam: in [0, 1]; lam may be ``[B]``, one for each
    sequence (see `length_adaptive_lambda`). loss_mask: ``[N]`` bool; None: all True. bootstrap: ``[B]``, the value
    after a truncated sequence; None: 0. critic_lam: the lambda of the A in ``returns``, in [0, 1] (decoupled GAE, Yuan
    et al., 2025, arXiv:2503.01491); None: lam. backend: ``cpp``, ``cuda`` or ``reference``; empty: see
    `areal_mega.ops.backend.choose`.

    Returns ``advantages [N], returns [N]``; they are constants of the loss, no gradient flows through them. With each
    backend they are the same, bit for bit, in every run and whatever sequences stand beside a sequence.
    Raises ValueError for shapes, dtypes, devices or numbers other than these; on a GPU the values of cu_seqlens and of
    a tensor lam are not checked, which would wait for it.
    """
    lams = lam.detach() if isinstance(lam, Tensor) else None
    number = 0.0 if isinstance(lam, Tensor) else lam
    _check(rewards, values, cu_seqlens, gamma, number, lams, critic_lam, loss_mask, bootstrap)
    inputs = rewards.detach(), values.detach(), cu_seqlens.to(torch.int32), gamma, number, lams, critic_lam
    return torch.ops.areal_mega.gae(*inputs, loss_mask, None if bootstrap is None else bootstrap.detach(), backend)


def length_adaptive_lambda(lengths: Tensor, alpha: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[B]`` lambda = 1 - 1 / (alpha * length), so that the rewards of long sequences reach their beginning
    (VAPO, Yue et al., 2025, arXiv:2504.05118, section 4.2); 0 where that is negative.

    lengths: ``[B]`` valid tokens of each sequence. alpha: above 0; VAPO has 0.05. dtype: that of the rewards.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}: expected a number above 0")
    return (1 - 1 / (alpha * lengths.double())).clamp(min=0).to(dtype)


def _check(
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float,
    lams: Tensor | None,
    critic_lam: float | None,
    loss_mask: Tensor | None,
    bootstrap: Tensor | None,
) -> None:
    if rewards.dim() != 1 or rewards.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"rewards is {rewards.dtype} of shape {list(rewards.shape)}: expected float32 or float64 of shape [N]"
        )
    check_cu_seqlens(cu_seqlens)
    tokens, sequences = rewards.numel(), cu_seqlens.numel() - 1
    if tokens >= 2**31:
        raise ValueError(f"{tokens} tokens in one call: expected fewer than 2**31, split the batch")
    check_like(rewards, "values", values, rewards.dtype, tokens)
    check_like(rewards, "cu_seqlens", cu_seqlens, cu_seqlens.dtype, sequences + 1)
    for name, x in (("lam", lams), ("bootstrap", bootstrap)):
        if x is not None:
            check_like(rewards, name, x, rewards.dtype, sequences)
    if loss_mask is not None:
        check_like(rewards, "loss_mask", loss_mask, torch.bool, tokens)
    for name, number in (("gamma", gamma), ("lam", lam), ("critic_lam", 0 if critic_lam is None else critic_lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}: expected a number in [0, 1]")


def _arguments(
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float,
    lams: Tensor | None,
    critic_lam: float | None,
    loss_mask: Tensor | None,
    bootstrap: Tensor | None,
) -> dict[str, Any]:
    """What the compiled kernels take, the results among them."""
    advantages = torch.empty_like(rewards, memory_format=torch.contiguous_format)
    return {
        "rewards": rewards.contiguous(),
        "values": values.contiguous(),
        "cu_seqlens": cu_seqlens.contiguous(),
        "loss_mask": None if loss_mask is None else loss_mask.contiguous(),
        "bootstrap": None if bootstrap is None else bootstrap.contiguous(),
        "lams": None if lams is None else lams.contiguous(),
        "advantages": advantages,
        "returns": torch.empty_like(advantages),
        "sequences": cu_seqlens.numel() - 1,
        "gamma": gamma,
        "lam": lam,
        "critic_lam": 0.0 if critic_lam is None else critic_lam,
        "decoupled": critic_lam is not None,
    }


def _cpp(rewards: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    arguments = _arguments(rewards, *rest)
    native.cpu(f"gae_{native.suffix(rewards.dtype)}", **arguments)
    return arguments["advantages"], arguments["returns"]


def _cuda(rewards: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    arguments = _arguments(rewards, *rest)
    dtype, tokens = native.suffix(rewards.dtype), rewards.numel()
    workspace_bytes = getattr(compiled_module().cuda, f"gae_workspace_{dtype}")
    size = workspace_bytes(tokens=tokens, sequences=arguments["sequences"], decoupled=arguments["decoupled"])
    workspace = rewards.new_empty(size, dtype=torch.uint8)
    native.cuda(f"gae_{dtype}", **arguments, workspace=workspace, tokens=tokens)
    return arguments["advantages"], arguments["returns"]


_IMPLEMENTATIONS = {"cpp": _cpp, "cuda": _cuda, "reference": reference_gae}


def _run(
    rewards: Tensor,
    values: Tensor,
    cu_seqlens: Tensor,
    gamma: float,
    lam: float,
    lams: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    *arguments, backend = rest
    if rewards.device.type == "cpu":
        check_bounds(cu_seqlens, rewards.numel())
        if lams is not None and not bool(((lams >= 0) & (lams <= 1)).all()):
            raise ValueError("lam has values outside of [0, 1]")
    implementation = choose("gae", _IMPLEMENTATIONS, rewards.device, backend)
    return implementation(rewards, values, cu_seqlens, gamma, lam, lams, *arguments)


def _run_fake(rewards: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rewards), torch.empty_like(rewards)


torch.library.define(
    "areal_mega::gae",
    "(Tensor rewards, Tensor values, Tensor cu_seqlens, float gamma, float lam, Tensor? lams, float? critic_lam, "
    "Tensor? loss_mask, Tensor? bootstrap, str backend) -> (Tensor advantages, Tensor returns)",
)
torch.library.impl("areal_mega::gae", ("cpu", "cuda"), _run)
torch.library.register_fake("areal_mega::gae", _run_fake)
